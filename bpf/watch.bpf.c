// SPDX-License-Identifier: GPL-2.0-only
/*
 * Counts events of vCPUs without records: IPIs by sender, target, vector and path,
 * other interrupts, exits by reason, wake-ups. ipitrace_watch.h defines the counters.
 *
 * User space sets by -D: N_CELLS (a power of two), HOST_ISA (the isa of kvm_exit if the
 * record does not have it), and the definitions that probe.h needs. With STRANGERS, a vCPU
 * thread without a slot takes a free one at its first event, because its VM may start and end
 * between two searches of user space; a thread that finds none is noted. When it loads the
 * maps, user space sets their numbers of entries.
 *
 * kvm_apic_accept_irq does not show the source of an interrupt, and also fires for timers.
 * The interrupt is an IPI if it is accepted in the thread of a vCPU that is sending one
 * with this vector and mode: KVM accepts the interrupts of a send before the ICR write or
 * the hypercall is over (kvm_irq_delivery_to_apic() and kvm_pv_send_ipi() in
 * arch/x86/kvm/lapic.c, kvm_hv_send_ipi() in arch/x86/kvm/hyperv.c). Its argument named apicid
 * is KVM's vcpu_id.
 */
#include "ipitrace_watch.h"
#include "probe.h"

BPF_F_TABLE("array", u32, struct ipitrace_watch_cell, cells, N_CELLS, MMAPABLE);
BPF_F_TABLE("array", u32, struct ipitrace_watch_head, heads, 1, MMAPABLE);
BPF_F_TABLE("hash", u32, u32, slot_of_tid, 1, 0);
#ifdef STRANGERS
BPF_F_TABLE("lru_hash", u64, u64, strangers, 1, 0);
BPF_F_TABLE("percpu_array", u32, u64, stranger_totals, IPITRACE_WATCH_NR_TOTALS, 0);
BPF_F_TABLE("array", u32, struct ipitrace_watch_claim, claims, 1, MMAPABLE);
BPF_QUEUESTACK("queue", free_slots, u32, 1, 0); /* filled by user space, emptied by claim() */
#endif

#define PROBES 16 /* cells tried for a key; a table at most half full needs few of them */
#define CELL_BITS (__builtin_ctz(N_CELLS))

#define ICR_VECTOR 0xff
#define ICR_MODE_SHIFT 8
#define ICR_MODE 0x7
#define ICR_LOGICAL (1 << 11)
#define ICR_SHORTHAND (3 << 18)
#define MODE_LOWEST 1

/* `open`: vector and mode as in the ICR, how the send was requested, and how it ends. */
#define OPEN_HOW_SHIFT 16 /* how the send was requested: bits of HOW */
#define OPEN_WAKES (1 << 28) /* AVIC has set the IRR, and KVM wakes the targets: none seen yet */
#define OPEN_WOKE (1 << 29) /* the same, and the targets seen are counted */
#define OPEN_ONE_TARGET (1 << 30) /* ends with the first accepted interrupt */
#define OPEN (1u << 31)

static __always_inline int this_slot(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	u32 *slot = slot_of_tid.lookup(&tid);

	return slot ? *slot : -1;
}

#ifdef STRANGERS
/*
 * Take a slot for this thread, which runs a vCPU. `claims` tells user space whose it is. A
 * stranger is not tried again until user space has removed it: if no slot is free, vCPUs must
 * not contend for the queue's lock at each event.
 */
static __always_inline int claim(void)
{
	u64 thread = bpf_get_current_pid_tgid();
	u32 tid = thread, slot;
	struct ipitrace_watch_claim *claim;

	if (strangers.lookup(&thread) || free_slots.pop(&slot))
		return -1;
	if (slot_of_tid.insert(&tid, &slot)) { /* user space has just given it one */
		free_slots.push(&slot, 0);
		return this_slot();
	}
	claim = claims.lookup(&slot);
	if (claim) {
		claim->since_ns = bpf_ktime_get_ns();
		claim->uid = bpf_get_current_uid_gid();
		bpf_get_current_comm(claim->comm, sizeof(claim->comm));
		compiler_barrier();
		claim->thread = thread;
	}
	return slot;
}
#endif

/* As this_slot(), in a program that runs in threads of vCPUs only. */
static __always_inline int vcpu_slot(void)
{
	int slot = this_slot();

#ifdef STRANGERS
	if (__builtin_expect(slot < 0, 0))
		slot = claim();
#endif
	return slot;
}

#ifdef STRANGERS
static __always_inline void count_strangers(u32 what, u64 n)
{
	u64 *total = stranger_totals.lookup(&what);

	if (total)
		*total += n;
}
#endif

/*
 * The number of send requests of vCPU threads without a slot, by thread and process. User space
 * reads and removes them; the kernel drops some if there are too many, but not from the totals.
 */
static __always_inline void stranger(u64 sends)
{
#ifdef STRANGERS
	u64 key = bpf_get_current_pid_tgid();
	u64 *sent = strangers.lookup(&key);

	count_strangers(IPITRACE_WATCH_STRANGER_SENDS, sends);
	if (sent) {
		*sent += sends;
		return;
	}
	count_strangers(IPITRACE_WATCH_STRANGERS, 1);
	strangers.update(&key, &sends);
#endif
}

/* Add one to the key's cell; use a free cell for a new key. */
static __always_inline void add(u32 slot, struct ipitrace_watch_head *head, u64 what, u64 key)
{
	u64 whole = key | what << IPITRACE_WATCH_WHAT_SHIFT;
	/* The constant is 2^64 divided by the golden ratio: it spreads adjacent keys. */
	u32 hash = whole * 0x9e3779b97f4a7c15ull >> (64 - CELL_BITS);

#pragma unroll
	for (int i = 0; i < PROBES; i++) {
		u32 at = slot * N_CELLS + ((hash + i) & (N_CELLS - 1));
		struct ipitrace_watch_cell *cell = cells.lookup(&at);

		if (!cell)
			return;
		if (!cell->key)
			cell->key = whole;
		if (cell->key == whole) {
			cell->count++;
			return;
		}
	}
	head->unplaced[what - 1]++;
}

/* How a send was requested, as in a key, from bit 0. */
#define HOW(sent_by, cause) \
	((sent_by) | (cause) << (IPITRACE_WATCH_CAUSE_SHIFT - IPITRACE_WATCH_SENT_BY_SHIFT))
#define HOW_MASK 0x1f

/* The slot's head, reserved until leave(); NULL if the event cannot be counted. */
static __always_inline struct ipitrace_watch_head *enter(u32 slot)
{
	struct ipitrace_watch_head *head = heads.lookup(&slot);
	u32 cpu = bpf_get_smp_processor_id() + 1;

	if (!head)
		return NULL;
	if (head->busy) {
		head->missed++;
		return NULL;
	}
	head->busy = 1;
	compiler_barrier();
	head->events++;
	if (head->cpu != cpu) {
		head->cpu = cpu;
		add(slot, head, IPITRACE_WATCH_CPU, cpu - 1);
	}
	return head;
}

static __always_inline void leave(struct ipitrace_watch_head *head)
{
	compiler_barrier();
	head->busy = 0;
}

static __always_inline u64 interrupt_key(u64 target, u64 vector, u64 mode)
{
	return target << IPITRACE_WATCH_TARGET_SHIFT | vector << IPITRACE_WATCH_VECTOR_SHIFT |
	       mode << IPITRACE_WATCH_MODE_SHIFT;
}

static __always_inline u64 ipi_key(struct ipitrace_watch_head *head, u64 target, u64 vector,
				   u64 mode, u64 how)
{
	return interrupt_key(target, vector, mode) | how << IPITRACE_WATCH_SENT_BY_SHIFT |
	       (u64)head->exit_isa << IPITRACE_WATCH_ISA_SHIFT |
	       (u64)head->exit_reason << IPITRACE_WATCH_REASON_SHIFT;
}

static __always_inline void open_send(struct ipitrace_watch_head *head, u32 icr_low, u32 how,
				      bool one_target)
{
	head->sends++;
	head->open = OPEN | (icr_low & (ICR_VECTOR | ICR_MODE << ICR_MODE_SHIFT)) |
		     how << OPEN_HOW_SHIFT | (one_target ? OPEN_ONE_TARGET : 0);
}

/* An IPI that AVIC has set in the target's IRR. */
static __always_inline void count_woken(u32 slot, struct ipitrace_watch_head *head, u64 target)
{
	head->fixed[0]++;
	head->apicv[0]++;
	add(slot, head, IPITRACE_WATCH_IPI,
	    ipi_key(head, target, head->open & ICR_VECTOR, head->open >> ICR_MODE_SHIFT & ICR_MODE,
		    head->open >> OPEN_HOW_SHIFT & HOW_MASK));
}

/* The end of a send. Older kernels do not report the targets that they wake. */
static __always_inline void close_send(u32 slot, struct ipitrace_watch_head *head)
{
	if (head->open & OPEN_WAKES)
		count_woken(slot, head, IPITRACE_WATCH_TARGET_UNKNOWN);
	head->open = 0;
}

#ifdef HAVE_kvm_apic_ipi
PROBE(kvm_apic_ipi)
{
	u32 icr_low = FIELD(kvm_apic_ipi, icr_low);
	u32 dest = FIELD(kvm_apic_ipi, dest_id);
	u32 mode = icr_low >> ICR_MODE_SHIFT & ICR_MODE;
	struct ipitrace_watch_head *head;
	int slot = vcpu_slot();
	u32 how;
	bool one;

	if (slot < 0) {
		stranger(1);
		return 0;
	}
	head = enter(slot);
	if (!head)
		return 0;
	how = head->open & OPEN ? HOW(IPITRACE_WATCH_SENT_BY_ICR, 0)
				: head->open >> OPEN_HOW_SHIFT & HOW_MASK;
	/* 0xff is xAPIC's broadcast. In x2APIC mode it is one vCPU: the send stays open longer. */
	one = mode == MODE_LOWEST ||
	      (!(icr_low & (ICR_LOGICAL | ICR_SHORTHAND)) && dest != 0xff && dest != ~0u);
	open_send(head, icr_low, how, one);
	leave(head);
	return 0;
}
#endif

#ifdef HAVE_kvm_hypercall
PROBE(kvm_hypercall)
{
	u64 nr = FIELD(kvm_hypercall, nr);
	struct ipitrace_watch_head *head;
	int slot;

	if (nr != KVM_HC_SEND_IPI)
		return 0;
	slot = vcpu_slot();
	if (slot < 0) {
		stranger(1);
		return 0;
	}
	head = enter(slot);
	if (!head)
		return 0;
	open_send(head, FIELD(kvm_hypercall, a3), HOW(IPITRACE_WATCH_SENT_BY_HYPERCALL, 0), false);
	leave(head);
	return 0;
}
#endif

#define HV_LOW_VECTOR 0x10 /* HV_IPI_LOW_VECTOR, arch/x86/include/asm/hyperv-tlfs.h */

/* One send by a Hyper-V hypercall, always with delivery mode 0 (fixed). */
static __always_inline void hv_send(u32 vector, bool one_target)
{
	struct ipitrace_watch_head *head;
	int slot;

	if (vector < HV_LOW_VECTOR || vector > ICR_VECTOR)
		return; /* KVM refuses it */
	slot = vcpu_slot();
	if (slot < 0) {
		stranger(1);
		return;
	}
	head = enter(slot);
	if (!head)
		return;
	open_send(head, vector, HOW(IPITRACE_WATCH_SENT_BY_HV, 0), one_target);
	leave(head);
}

#ifdef HAVE_kvm_hv_send_ipi
PROBE(kvm_hv_send_ipi)
{
	u64 processors = FIELD(kvm_hv_send_ipi, processor_mask);

	hv_send(FIELD(kvm_hv_send_ipi, vector), !(processors & (processors - 1)));
	return 0;
}
#endif

#ifdef HAVE_kvm_hv_send_ipi_ex
/* The event does not have the processors of the set. */
PROBE(kvm_hv_send_ipi_ex)
{
	hv_send(FIELD(kvm_hv_send_ipi_ex, vector), false);
	return 0;
}
#endif

#ifdef HAVE_kvm_xen_hypercall
/* One of them sends to an event channel: which of the vCPUs it notifies is not reported. */
PROBE(kvm_xen_hypercall)
{
	struct ipitrace_watch_head *head;
	int slot = this_slot();

	if (slot < 0)
		return 0;
	head = enter(slot);
	if (!head)
		return 0;
	head->xen_hypercalls++;
	leave(head);
	return 0;
}
#endif

#ifdef HAVE_kvm_avic_incomplete_ipi
/* enum avic_ipi_failure_cause, arch/x86/include/asm/svm.h */
#define INVALID_INT_TYPE 0
#define TARGET_NOT_RUNNING 1
#define INVALID_TARGET 2
#define OTHER_CAUSE 7

/*
 * Of an invalid type or target, KVM repeats the whole send, and reports it. If a target is not
 * running, the hardware has already set the targets' IRR and KVM only wakes them: it reports each
 * by kvm_apicv_accept_irq alone (avic_kick_vcpu() in arch/x86/kvm/svm/avic.c), older kernels by
 * nothing. For all other causes nothing is sent.
 */
PROBE(kvm_avic_incomplete_ipi)
{
	u32 icr_low = FIELD(kvm_avic_incomplete_ipi, icrl);
	u32 id = FIELD(kvm_avic_incomplete_ipi, id);
	struct ipitrace_watch_head *head;
	int slot = this_slot();
	u32 how;

	if (slot < 0)
		return 0;
	head = enter(slot);
	if (!head)
		return 0;
	how = HOW(IPITRACE_WATCH_SENT_BY_AVIC, id < OTHER_CAUSE ? id : OTHER_CAUSE);
	close_send(slot, head);
	if (id == INVALID_INT_TYPE || id == INVALID_TARGET)
		head->open = how << OPEN_HOW_SHIFT;
	else
		head->sends++;
	if (id == TARGET_NOT_RUNNING)
		head->open = OPEN_WAKES | how << OPEN_HOW_SHIFT |
			     (icr_low & (ICR_VECTOR | ICR_MODE << ICR_MODE_SHIFT));
	leave(head);
	return 0;
}
#endif

#ifdef HAVE_kvm_apic_accept_irq
PROBE(kvm_apic_accept_irq)
{
	u32 target = FIELD(kvm_apic_accept_irq, apicid) & 0xffff;
	u32 vector = FIELD(kvm_apic_accept_irq, vec) & ICR_VECTOR;
	u32 mode = FIELD(kvm_apic_accept_irq, dm) >> ICR_MODE_SHIFT & ICR_MODE;
	struct ipitrace_watch_head *head;
	int slot = this_slot();
	bool ipi;

	if (slot < 0)
		return 0;
	head = enter(slot);
	if (!head)
		return 0;
	ipi = head->open & OPEN && (head->open & ICR_VECTOR) == vector &&
	      (head->open >> ICR_MODE_SHIFT & ICR_MODE) == mode;
	head->last_what = ipi ? IPITRACE_WATCH_IPI : IPITRACE_WATCH_OTHER;
	if (ipi) {
		add(slot, head, IPITRACE_WATCH_IPI,
		    ipi_key(head, target, vector, mode, head->open >> OPEN_HOW_SHIFT & HOW_MASK));
		if (mode <= MODE_LOWEST)
			head->fixed[0]++;
		if (head->open & OPEN_ONE_TARGET)
			head->open = 0;
	} else {
		add(slot, head, IPITRACE_WATCH_OTHER, interrupt_key(target, vector, mode));
		if (mode <= MODE_LOWEST)
			head->fixed[1]++;
	}
	leave(head);
	return 0;
}
#endif

#ifdef HAVE_kvm_apicv_accept_irq
/*
 * Follows kvm_apic_accept_irq of the same interrupt if APICv or AVIC accepts it; alone for a target
 * that KVM wakes after kvm_avic_incomplete_ipi.
 */
PROBE(kvm_apicv_accept_irq)
{
	u32 vector = FIELD(kvm_apicv_accept_irq, vec) & ICR_VECTOR;
	struct ipitrace_watch_head *head;
	int slot = this_slot();

	if (slot < 0)
		return 0;
	head = enter(slot);
	if (!head)
		return 0;
	if (head->open & (OPEN_WAKES | OPEN_WOKE) && (head->open & ICR_VECTOR) == vector) {
		head->open = (head->open & ~OPEN_WAKES) | OPEN_WOKE;
		count_woken(slot, head, FIELD(kvm_apicv_accept_irq, apicid) & 0xffff);
	} else if (head->last_what == IPITRACE_WATCH_IPI)
		head->apicv[0]++;
	else
		head->apicv[1]++;
	leave(head);
	return 0;
}
#endif

#ifdef HAVE_kvm_exit
#define ISA_VMX 1 /* KVM_ISA_VMX, arch/x86/kvm/trace.h */

PROBE(kvm_exit)
{
	u32 reason = FIELD(kvm_exit, exit_reason);
	struct ipitrace_watch_head *head;
	int slot = vcpu_slot();
	u8 isa;

	if (slot < 0)
		return 0;
	isa = FIELD_OR(kvm_exit, isa, HOST_ISA);
	head = enter(slot);
	if (!head)
		return 0;
	close_send(slot, head);
	head->exit_isa = isa & 3;
	/* VMX has flags above the reason; SVM uses these bits for other reasons. */
	head->exit_reason = isa == ISA_VMX || reason <= 0xffff ? reason : 0xffff;
	add(slot, head, IPITRACE_WATCH_EXIT, reason | (u64)(isa & 3) << IPITRACE_WATCH_ISA_SHIFT);
	leave(head);
	return 0;
}
#endif

#ifdef HAVE_kvm_entry
PROBE(kvm_entry)
{
	struct ipitrace_watch_head *head;
	int slot = vcpu_slot();

	if (slot < 0) {
		stranger(0);
		return 0;
	}
	head = enter(slot);
	if (!head)
		return 0;
	close_send(slot, head);
	head->exit_isa = 0;
	head->exit_reason = 0;
	leave(head);
	return 0;
}
#endif

/* The end of an ICR write if neither kvm_exit nor kvm_entry fires. */
#ifdef HAVE_kvm_msr
PROBE(kvm_msr)
{
	struct ipitrace_watch_head *head;
	int slot;

	if (!is_icr_msr(FIELD(kvm_msr, ecx)))
		return 0;
	slot = this_slot();
	if (slot < 0)
		return 0;
	head = enter(slot);
	if (!head)
		return 0;
	head->open = 0;
	leave(head);
	return 0;
}
#endif

#ifdef HAVE_kvm_vcpu_wakeup
PROBE(kvm_vcpu_wakeup)
{
	struct ipitrace_watch_head *head;
	int slot = vcpu_slot();

	if (slot < 0) {
		stranger(0);
		return 0;
	}
	head = enter(slot);
	if (!head)
		return 0;
	head->wakeups++;
	head->waited += !!FIELD(kvm_vcpu_wakeup, waited);
	leave(head);
	return 0;
}
#endif

#ifdef HAVE_kvm_pv_tlb_flush
PROBE(kvm_pv_tlb_flush)
{
	struct ipitrace_watch_head *head;
	int slot;

	if (!FIELD(kvm_pv_tlb_flush, need_flush_tlb))
		return 0;
	slot = this_slot();
	if (slot < 0)
		return 0;
	head = enter(slot);
	if (!head)
		return 0;
	head->pv_tlb_flushes++;
	leave(head);
	return 0;
}
#endif
