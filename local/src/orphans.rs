//! Child processes that die with this one, however it dies.
//!
//! `Drop` covers a panic, but not a SIGKILL of the test process. The kernel can signal a child when its parent *thread* ends, so every
//! child is started from one thread that lives as long as the process. `setpriv` sets that signal, because doing it between
//! fork and exec from here would take unsafe code.

use std::io;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on the thread that never ends, and waits for it. Start children only in here.
pub(crate) fn on_parent_thread<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    static PARENT: OnceLock<Option<Sender<Job>>> = OnceLock::new();
    let parent = PARENT.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        let thread = std::thread::Builder::new().name("parent-of-children".into());
        thread.spawn(move || queue.iter().for_each(|job| job())).ok().map(|_| jobs)
    });
    let ended = || io::Error::other("the thread that starts child processes has ended");
    let (done, result) = channel();
    let job: Job = Box::new(move || {
        let _ = done.send(job());
    });
    parent.as_ref().ok_or_else(ended)?.send(job).map_err(|_| ended())?;
    result.recv().map_err(|_| ended())
}

/// A command for `program` that gets `signal` (a name such as `KILL`) when this process ends. Its pid is the program's own.
pub(crate) fn bound_to_us(program: &Path, signal: &str, privileges: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(privileges).arg("--pdeathsig").arg(signal).arg("--").arg(program);
    command
}
