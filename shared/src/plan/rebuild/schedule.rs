//! Hands the steps of a graph out while they are worked on.

use std::collections::VecDeque;

use super::{Graph, Job, Step};

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Step(usize),
    /// Something that runs has to finish first.
    Wait,
    Done,
}

/// Hands out the steps of a graph: no sooner than what they wait for, none beside one that locks what it needs.
#[derive(Debug)]
pub struct Schedule {
    steps: Vec<Step>,
    missing: Vec<usize>,
    dependents: Vec<Vec<usize>>,
    /// The costliest last.
    ready: Vec<usize>,
    running: Vec<usize>,
    left: usize,
}

impl Schedule {
    pub fn new(graph: Graph) -> Self {
        let steps = graph.steps;
        let mut dependents = vec![Vec::new(); steps.len()];
        for (index, step) in steps.iter().enumerate() {
            step.waits_for.iter().for_each(|&before| dependents[before].push(index));
        }
        let missing: Vec<usize> = steps.iter().map(|step| step.waits_for.len()).collect();
        let mut ready: Vec<usize> = (0..steps.len()).filter(|&step| missing[step] == 0).collect();
        ready.sort_by_key(|&step| (steps[step].cost, std::cmp::Reverse(step)));
        Self { left: steps.len(), steps, missing, dependents, ready, running: Vec::new() }
    }

    /// The costliest step that may be begun now.
    pub fn take(&mut self) -> Next {
        self.take_of(|_| true)
    }

    /// The next of the jobs that are wanted now.
    pub fn take_of(&mut self, wanted: impl Fn(Job) -> bool) -> Next {
        let free = self.ready.iter().rposition(|&step| {
            wanted(self.steps[step].job) && !self.running.iter().any(|&other| self.conflict(step, other))
        });
        match free {
            Some(at) => {
                let step = self.ready.remove(at);
                self.running.push(step);
                Next::Step(step)
            }
            None if self.left == 0 => Next::Done,
            None => Next::Wait,
        }
    }

    pub fn job(&self, step: usize) -> Job {
        self.steps[step].job
    }

    /// A step that was taken is done: what waited for it may follow.
    pub fn finish(&mut self, step: usize) {
        self.running.retain(|&running| running != step);
        self.left = self.left.saturating_sub(1);
        self.release(step);
    }

    fn release(&mut self, step: usize) {
        for dependent in std::mem::take(&mut self.dependents[step]) {
            self.missing[dependent] -= 1;
            if self.missing[dependent] == 0 {
                let key = |step: usize| (self.steps[step].cost, std::cmp::Reverse(step));
                let at = self.ready.partition_point(|&other| key(other) < key(dependent));
                self.ready.insert(at, dependent);
            }
        }
    }

    fn conflict(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.steps[a], &self.steps[b]);
        a.locks.iter().any(|lock| b.needs.contains(lock)) || b.locks.iter().any(|lock| a.needs.contains(lock))
    }
}

/// A step that can never run, if there is one.
pub(super) fn stuck(graph: &Graph) -> Option<usize> {
    let mut schedule = Schedule::new(graph.clone());
    let mut ready: VecDeque<usize> = schedule.ready.drain(..).collect();
    let mut done = vec![false; graph.steps.len()];
    while let Some(step) = ready.pop_front() {
        done[step] = true;
        schedule.release(step);
        ready.extend(schedule.ready.drain(..));
    }
    done.iter().position(|done| !done)
}
