//! Where the threads of the kernels run.
#![cfg(target_os = "linux")]

use std::sync::Barrier;
use std::thread;

use cosec_worker::cpu_set::CpuSet;
use cosec_worker::kernels::cpu::CpuKernels;

/// The CPUs that each thread of a pool may run on.
fn places(threads: usize, cpus: Option<&CpuSet>) -> Vec<Option<CpuSet>> {
    let kernels = CpuKernels::new(threads, cpus).unwrap();
    kernels.pin_caller();
    // A thread that has taken an item waits, so that every thread takes one.
    let (mut places, all_there) = (vec![None; threads], Barrier::new(threads));
    kernels.each(&mut places, |_, place| {
        all_there.wait();
        *place = Some(CpuSet::available().unwrap());
    });
    places
}

#[test]
fn threads_are_pinned_to_a_cpu_each() {
    let cpus = CpuSet::available().unwrap();
    // The caller's thread stays pinned.
    let pinned = thread::scope(|scope| scope.spawn(|| places(cpus.count(), Some(&cpus))).join().unwrap());
    assert!(cpus.each().all(|cpu| pinned.contains(&Some(cpu))), "{pinned:?} on {cpus}");
    assert_eq!(places(3, None), vec![Some(cpus); 3]);
}
