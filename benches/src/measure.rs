//! What processes cost: CPU time and memory, from `/proc`, so that each process is counted for itself alone.

use std::fs;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::error::BenchError;

/// The unit of times in `/proc/<pid>/stat`: USER_HZ, which is 100 wherever Linux runs PostgreSQL servers (time(7)).
const TICKS_PER_SECOND: f64 = 100.0;
const SAMPLE: Duration = Duration::from_millis(50);

/// User and system seconds of a process and of those of its children that have been waited for (proc_pid_stat(5)).
fn cpu_with_reaped_children(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // `pid (name) state ppid …`: the name may hold anything, so count from its closing bracket.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11..15)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Some(ticks as f64 / TICKS_PER_SECOND)
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

fn tree(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(children(pid));
        next += 1;
    }
    found
}

/// CPU seconds of a process and everything it started, ended or not. Two readings give what lay between them.
pub fn tree_cpu_seconds(root: u32) -> f64 {
    tree(root).into_iter().filter_map(cpu_with_reaped_children).sum()
}

/// `VmRSS` or `VmHWM`, in bytes.
fn memory_bytes(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The peak of resident memory of a process tree, by sampling; for a lone process it is the kernel's own high-water mark.
#[derive(Debug, Default, Clone, Copy)]
pub struct MemoryPeak {
    pub bytes: u64,
}

impl MemoryPeak {
    pub fn sample(&mut self, root: u32) {
        let pids = tree(root);
        let now = match pids.as_slice() {
            [alone] => memory_bytes(*alone, "VmHWM"),
            several => several.iter().map(|&pid| memory_bytes(pid, "VmRSS")).sum(),
        };
        self.bytes = self.bytes.max(now);
    }
}

/// Samples until `done` is ready.
pub async fn watch_memory<T>(pid: impl Fn() -> Option<u32>, done: impl Future<Output = T>) -> (T, MemoryPeak) {
    let mut peak = MemoryPeak::default();
    let mut interval = tokio::time::interval(SAMPLE);
    let mut done = std::pin::pin!(done);
    loop {
        tokio::select! {
            result = &mut done => return (result, peak),
            _ = interval.tick() => if let Some(pid) = pid() { peak.sample(pid) },
        }
    }
}

/// What one process cost, with the children it waited for.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub cpu_seconds: f64,
    pub peak_bytes: u64,
    pub ended: Instant,
}

/// A child whose cost is read when it ends. Dropping it kills the child.
pub struct Measured {
    program: String,
    child: Child,
}

impl Measured {
    pub fn spawn(command: &mut Command) -> Result<Measured, BenchError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().map_err(BenchError::io(format!("cannot run {program}")))?;
        Ok(Measured { program, child })
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for a successful end.
    pub async fn finish(mut self) -> Result<Cost, BenchError> {
        let pid = self.child.id();
        let ended = tokio::task::spawn_blocking(move || wait_without_reaping(pid));
        let (ended, peak) = watch_memory(|| Some(pid), ended).await;
        let (cpu_seconds, ended) = ended??;
        let status: ExitStatus = self.child.wait().map_err(BenchError::io("cannot wait for a child"))?;
        if !status.success() {
            return Err(BenchError::Program { program: self.program.clone(), status });
        }
        Ok(Cost { cpu_seconds, peak_bytes: peak.bytes, ended })
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        // Does nothing to a child that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that has ended keeps its times until it is waited for.
fn wait_without_reaping(pid: u32) -> Result<(f64, Instant), BenchError> {
    let missing = || BenchError::Missing { what: format!("process {pid}") };
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(missing)?;
    waitid(WaitId::Pid(id), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        .map_err(|error| BenchError::io("cannot wait for a child")(error.into()))?;
    let ended = Instant::now();
    Ok((cpu_with_reaped_children(pid).ok_or_else(missing)?, ended))
}

/// The middle value, or the mean of the two in the middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_does_not_depend_on_the_order() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    #[tokio::test]
    async fn a_child_is_charged_for_its_own_children() {
        let mut busy = Command::new("sh");
        busy.args(["-c", "timeout 0.4 sh -c 'while :; do :; done'; exit 0"]);
        let cost = Measured::spawn(&mut busy).unwrap().finish().await.unwrap();
        assert!(cost.cpu_seconds > 0.1, "{cost:?}");
        let mut failing = Command::new("sh");
        failing.args(["-c", "exit 3"]);
        assert!(Measured::spawn(&mut failing).unwrap().finish().await.is_err());
    }
}
