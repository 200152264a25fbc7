//! Whole coordinators against simulated fleets under random schedules of faults: nothing lost, repeated or changed,
//! everything ended and given back. One seed determines a schedule.
//!
//! `COSEC_SIM_SCHEDULES` is how many are run, `COSEC_SIM_FIRST` the first seed; `COSEC_SIM_SEED` runs one seed alone
//! and prints what happens in it.

mod generate;
mod invariants;
mod run;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use cosec_tests::sim::{Effects, Fault, Phase};

use run::run_schedule;

/// Schedules that are run unless the environment says otherwise.
const SCHEDULES: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn random_schedules_of_faults_lose_repeat_and_change_nothing() {
    if let Some(seed) = number("COSEC_SIM_SEED") {
        run_schedule(seed, true).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        return;
    }
    let schedules = number("COSEC_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let first = number("COSEC_SIM_FIRST").unwrap_or(0);
    println!("seeds {first} to {}", first + schedules - 1);
    let next = AtomicU64::new(first);
    let work = || {
        let (mut effects, mut ends, mut wrong) = (Effects::new(), BTreeMap::<_, u64>::new(), Vec::new());
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + schedules {
                return (effects, ends, wrong);
            }
            match run_schedule(seed, false) {
                Ok(shown) => {
                    // Schedules, not times.
                    shown.effects.into_keys().for_each(|cell| *effects.entry(cell).or_default() += 1);
                    shown.ends.into_iter().for_each(|(end, count)| *ends.entry(end).or_default() += count);
                }
                Err(why) => wrong.push((seed, why)),
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let results: Vec<_> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        started.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (mut effects, mut ends, mut wrong) = (Effects::new(), BTreeMap::<_, u64>::new(), Vec::new());
    for (of_thread, ends_of_thread, wrong_of_thread) in results {
        of_thread.into_iter().for_each(|(cell, count)| *effects.entry(cell).or_default() += count);
        ends_of_thread.into_iter().for_each(|(end, count)| *ends.entry(end).or_default() += count);
        wrong.extend(wrong_of_thread);
    }
    println!("choices: {ends:?}");
    println!("schedules in which each fault took effect, at base and expert in prefill, draft, verify and idle:");
    let mut missed = Vec::new();
    for fault in Fault::ALL {
        let mut line = format!("{:>10}", format!("{fault:?}"));
        for place in ["base", "expert"] {
            for phase in Phase::ALL {
                let count = effects.get(&(fault, place, phase)).copied().unwrap_or(0);
                line += &format!(" {count:5}");
                if count == 0 {
                    missed.push((fault, place, phase));
                }
            }
            line += "  |";
        }
        println!("{line}");
    }
    for (seed, why) in &wrong {
        println!("seed {seed}: {why}");
    }
    let replay = "COSEC_SIM_SEED=SEED cargo test --release --workspace --test sessions schedules -- --nocapture";
    assert!(wrong.is_empty(), "{} of {schedules} schedules failed; replay one by {replay}", wrong.len());
    assert!(missed.is_empty() || schedules < 1_000, "never took effect: {missed:?}");
}

/// Seeds of schedules that once went wrong, one a line with its story.
const ONCE_WRONG: &str = include_str!("once_wrong.txt");

#[test]
fn schedules_that_once_went_wrong_go_right() {
    for line in ONCE_WRONG.lines() {
        let seed = line.split(':').next().unwrap().parse().unwrap();
        run_schedule(seed, false).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

#[test]
fn the_same_seed_gives_the_same_events() {
    for seed in 0..60 {
        let traces = [(); 2].map(|()| run_schedule(seed, false).map(|shown| shown.trace));
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}
