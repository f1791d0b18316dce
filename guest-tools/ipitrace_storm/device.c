// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/ipitrace_storm: IPI storms inside a Linux guest, for ipitrace.
 *
 * ioctl(IPITRACE_STORM_RUN) runs one storm and returns when it has ended; read() then
 * returns its records as the storm file of storm_abi.h. Each open file has the
 * records of its own last storm. An open file keeps the module loaded.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/cpufeature.h>
#include <asm/tsc.h>
#include <asm/uv/uv.h>

#include "ipitrace_storm.h"

struct open_file {
	struct mutex lock;
	struct storm *storm; /* the last storm of this file */
};

static int ipitrace_storm_open(struct inode *inode, struct file *file)
{
	struct open_file *open;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	open = kzalloc(sizeof(*open), GFP_KERNEL);
	if (!open)
		return -ENOMEM;
	mutex_init(&open->lock);
	file->private_data = open;
	return 0;
}

static int ipitrace_storm_release(struct inode *inode, struct file *file)
{
	struct open_file *open = file->private_data;

	storm_free(open->storm);
	kfree(open);
	return 0;
}

static int get_guest(void __user *argument)
{
	const struct ipitrace_storm_guest guest = {
		.abi_version = STORM_ABI_VERSION,
		.x2apic = send_in_x2apic_mode(),
		.tsc_unstable = check_tsc_unstable(),
		.tsc_khz = tsc_khz,
	};

	return copy_to_user(argument, &guest, sizeof(guest)) ? -EFAULT : 0;
}

static int run_or_check(struct open_file *open, unsigned int command, void __user *argument)
{
	struct ipitrace_storm_request *request = memdup_user(argument, sizeof(*request));
	int error;

	if (IS_ERR(request))
		return PTR_ERR(request);
	memset(request->reason, 0, sizeof(request->reason));
	if (command == IPITRACE_STORM_CHECK) {
		error = request_check(request);
	} else {
		storm_free(open->storm);
		open->storm = NULL;
		error = storm_run(request, &open->storm);
	}
	if (copy_to_user(argument, request, sizeof(*request)))
		error = -EFAULT;
	kfree(request);
	return error;
}

static long ipitrace_storm_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct open_file *open = file->private_data;
	int error;

	switch (command) {
	case IPITRACE_STORM_GET_GUEST:
		return get_guest((void __user *)argument);
	case IPITRACE_STORM_CHECK:
	case IPITRACE_STORM_RUN:
		break;
	default:
		return -ENOTTY;
	}
	if (mutex_lock_killable(&open->lock))
		return -EINTR;
	error = run_or_check(open, command, (void __user *)argument);
	mutex_unlock(&open->lock);
	return error;
}

/* One call reads from one part only; the next call continues after it. */
static ssize_t read_storm(const struct storm *storm, char __user *to, size_t size, loff_t *at)
{
	loff_t start = 0, offset;
	unsigned int part;
	const void *from;
	size_t length;
	ssize_t done;

	for (part = 0; (from = records_part(storm, part, &length)); part++) {
		if (*at < start + (loff_t)length) {
			offset = *at - start;
			done = simple_read_from_buffer(to, size, &offset, from, length);
			if (done > 0)
				*at += done;
			return done;
		}
		start += length;
	}
	return 0;
}

static ssize_t ipitrace_storm_read(struct file *file, char __user *to, size_t size, loff_t *at)
{
	struct open_file *open = file->private_data;
	ssize_t done = -ENODATA;

	if (mutex_lock_killable(&open->lock))
		return -EINTR;
	if (open->storm)
		done = read_storm(open->storm, to, size, at);
	mutex_unlock(&open->lock);
	return done;
}

static const struct file_operations ipitrace_storm_operations = {
	.owner = THIS_MODULE,
	.open = ipitrace_storm_open,
	.release = ipitrace_storm_release,
	.read = ipitrace_storm_read,
	.llseek = default_llseek,
	.unlocked_ioctl = ipitrace_storm_ioctl,
};

static struct miscdevice ipitrace_storm_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = IPITRACE_STORM_DEVICE,
	.fops = &ipitrace_storm_operations,
	.mode = 0600,
};

static int __init ipitrace_storm_init(void)
{
	int error;

	if (!boot_cpu_has(X86_FEATURE_APIC) || !tsc_khz || boot_cpu_has(X86_FEATURE_XENPV)) {
		pr_err("needs a local APIC and a TSC of known frequency, and no Xen PV\n");
		return -ENODEV;
	}
	if (is_uv_system()) {
		pr_err("SGI UV uses the interrupt vector that storms need\n");
		return -ENODEV;
	}
	error = storm_init();
	if (error)
		return error;
	error = receive_init();
	if (error) {
		pr_err("cannot attach to the tracepoint %s\n", storm_tracepoint);
		goto no_receive;
	}
	error = misc_register(&ipitrace_storm_device);
	if (error)
		goto no_device;
	return 0;

no_device:
	receive_exit();
no_receive:
	storm_exit();
	return error;
}

static void __exit ipitrace_storm_exit(void)
{
	misc_deregister(&ipitrace_storm_device);
	receive_exit();
	storm_exit();
}

module_init(ipitrace_storm_init);
module_exit(ipitrace_storm_exit);
MODULE_DESCRIPTION("IPI storms for ipitrace");
MODULE_AUTHOR("The ipitrace developers");
MODULE_VERSION(IPITRACE_STORM_VERSION);
MODULE_LICENSE("GPL");
