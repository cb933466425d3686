//! One process of a function, from its start to its end, and the invocation it is handling.

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::LambdaError;
use super::logs::{InstanceLog, LogBook, lock};
use super::runtime_api;
use super::spec::{FunctionSpec, LambdaOptions};

/// How often a running instance's memory is looked at.
const MEMORY_SAMPLE: Duration = Duration::from_millis(100);

/// An invocation on its way to an instance.
pub(super) struct Work {
    pub(super) request_id: String,
    pub(super) payload: Bytes,
    pub(super) timeout: Duration,
    pub(super) arn: String,
}

/// What the function answered through the Runtime API.
#[derive(Debug)]
pub(super) enum Reply {
    Response(Bytes),
    Error(Bytes),
    TooLarge,
}

/// A piece of work with the ends through which the Runtime API tells how it goes.
pub(super) struct Assignment {
    pub(super) work: Arc<Work>,
    pub(super) started: oneshot::Sender<Instant>,
    pub(super) reply: oneshot::Sender<Reply>,
}

/// How an invocation ended.
#[derive(Debug)]
pub(super) enum Ending {
    Replied(Reply),
    /// `None` where nothing is known about the exit.
    Exited(Option<ExitStatus>),
    /// It exited before it took the work.
    NeverStarted(Option<ExitStatus>),
    OutOfMemory,
    TimedOut,
}

#[derive(Debug)]
pub(super) struct Finished {
    pub(super) ending: Ending,
    pub(super) log: Vec<String>,
    pub(super) duration: Duration,
    pub(super) max_rss_kb: u64,
}

pub(super) struct Instance {
    pub(super) pid: u32,
    pub(super) log: InstanceLog,
    memory_limit_kb: u64,
    assignments: mpsc::Sender<Assignment>,
    init_error: Arc<Mutex<Option<Bytes>>>,
    exit: watch::Receiver<Option<Option<ExitStatus>>>,
    runtime_api: JoinHandle<()>,
}

impl Instance {
    /// Starts a process of `spec.binary` with a Runtime API of its own.
    pub(super) async fn start(
        spec: &FunctionSpec,
        options: &LambdaOptions,
        book: &Arc<LogBook>,
    ) -> Result<Instance, LambdaError> {
        let failed = |source: io::Error| LambdaError::Spawn { binary: spec.binary.clone(), source };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (assignments, queue) = mpsc::channel(1);
        let init_error = Arc::new(Mutex::new(None));
        let api = runtime_api::router(queue, Arc::clone(&init_error));

        // `setpriv` would report a missing binary only by its exit code.
        std::fs::metadata(&spec.binary).map_err(failed)?;
        let mut child = spawn(spec, options, &address.to_string()).map_err(failed)?;
        let runtime_api = tokio::spawn(async move {
            let _ = axum::serve(listener, api).await;
        });
        let mut log = InstanceLog::new();
        if let Some(stdout) = child.stdout.take() {
            log.follow(&spec.name, book, stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            log.follow(&spec.name, book, stderr);
        }
        let pid = child.id().unwrap_or_default();
        let (exited, exit) = watch::channel(None);
        tokio::spawn(async move {
            let status = child.wait().await.ok();
            let _ = exited.send(Some(status));
        });
        Ok(Instance {
            pid,
            log,
            memory_limit_kb: u64::from(spec.memory_mb) * 1024,
            assignments,
            init_error,
            exit,
            runtime_api,
        })
    }

    pub(super) fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// SIGKILL to the process and to the children it started, as when AWS takes a sandbox away.
    pub(super) fn kill(&self) {
        // Checked first, because the number of a process that was reaped may belong to another.
        if self.is_alive()
            && let Some(group) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// The error that the runtime reported before its first invocation.
    pub(super) fn init_error(&self) -> Option<Bytes> {
        lock(&self.init_error).clone()
    }

    /// Hands over one invocation and follows it to its end. After any ending but `Replied` the process is gone.
    pub(super) async fn run(&self, work: Arc<Work>) -> Finished {
        let timeout = work.timeout;
        let (started, starting) = oneshot::channel();
        let (reply, mut replying) = oneshot::channel();
        let mut exit = self.exit.clone();
        let handed_over = Instant::now();
        let mut max_rss_kb = 0;
        let assigned = self.assignments.send(Assignment { work, started, reply }).await.is_ok();
        let begun = tokio::select! {
            begun = starting, if assigned => begun.ok(),
            _ = exited(&mut exit) => None,
            // AWS gives the initialisation ten seconds of its own.
            () = tokio::time::sleep(timeout.max(Duration::from_secs(10))) => {
                self.kill();
                return self.finish(Ending::TimedOut, handed_over.elapsed(), 0).await;
            }
        };
        let Some(begun) = begun else {
            let status = exited(&mut exit).await;
            return self.finish(Ending::NeverStarted(status), Duration::ZERO, 0).await;
        };

        let deadline = tokio::time::sleep_until((begun + timeout).into());
        tokio::pin!(deadline);
        let mut sample = tokio::time::interval(MEMORY_SAMPLE);
        let ending = loop {
            tokio::select! {
                biased;
                Ok(reply) = &mut replying => break Ending::Replied(reply),
                status = exited(&mut exit) => break Ending::Exited(status),
                () = &mut deadline => break Ending::TimedOut,
                _ = sample.tick() => {
                    let (now_kb, peak_kb) = memory_kb(self.pid);
                    max_rss_kb = max_rss_kb.max(peak_kb);
                    if now_kb > self.memory_limit_kb {
                        break Ending::OutOfMemory;
                    }
                }
            }
        };
        let duration = begun.elapsed();
        max_rss_kb = max_rss_kb.max(memory_kb(self.pid).1);
        if !matches!(ending, Ending::Replied(_)) {
            self.kill();
            exited(&mut exit).await;
        }
        self.finish(ending, duration, max_rss_kb).await
    }

    async fn finish(&self, ending: Ending, duration: Duration, max_rss_kb: u64) -> Finished {
        Finished { ending, log: self.log.take().await, duration, max_rss_kb }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.kill();
        self.runtime_api.abort();
    }
}

async fn exited(exit: &mut watch::Receiver<Option<Option<ExitStatus>>>) -> Option<ExitStatus> {
    exit.wait_for(Option::is_some).await.ok().and_then(|status| status.flatten())
}

/// As AWS words it: `exit status 1`, `signal: killed`; `None` for a process that ended with 0.
pub(super) fn describe_exit(status: Option<ExitStatus>) -> Option<String> {
    let status = status?;
    match (status.code(), status.signal()) {
        (Some(0), _) | (None, None) => None,
        (Some(code), _) => Some(format!("exit status {code}")),
        (None, Some(signal)) => Some(match signal {
            6 => "signal: aborted".into(),
            9 => "signal: killed".into(),
            11 => "signal: segmentation fault".into(),
            15 => "signal: terminated".into(),
            other => format!("signal: {other}"),
        }),
    }
}

/// Resident memory now and at its peak, from `/proc/<pid>/status`; zeros for a process that is gone.
fn memory_kb(pid: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    (field("VmRSS:").unwrap_or(0), field("VmHWM:").unwrap_or(0))
}

fn spawn(spec: &FunctionSpec, options: &LambdaOptions, runtime_api: &str) -> io::Result<tokio::process::Child> {
    let mut command = crate::orphans::bound_to_us(&spec.binary, "KILL", &[]);
    command.env_clear();
    for kept in ["PATH", "HOME"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    let root = spec.binary.parent().unwrap_or(Path::new("/"));
    command
        .env("AWS_LAMBDA_RUNTIME_API", runtime_api)
        .env("AWS_LAMBDA_FUNCTION_NAME", &spec.name)
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", spec.memory_mb.to_string())
        .env("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{}", spec.name))
        .env("AWS_LAMBDA_LOG_STREAM_NAME", format!("local/[$LATEST]{}", uuid::Uuid::new_v4().simple()))
        .env("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand")
        .env("AWS_EXECUTION_ENV", "AWS_Lambda_provided.al2023")
        .env("AWS_REGION", &options.region)
        .env("AWS_DEFAULT_REGION", &options.region)
        .env("_HANDLER", "bootstrap")
        .env("LAMBDA_TASK_ROOT", root)
        .env("LAMBDA_RUNTIME_DIR", root)
        .env("LANG", "en_US.UTF-8")
        .env("TZ", ":UTC")
        .envs(&spec.environment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that what it starts can be killed with it.
        .process_group(0);
    let runtime = Handle::current();
    crate::orphans::on_parent_thread(move || {
        let _context = runtime.enter();
        tokio::process::Command::from(command).kill_on_drop(true).spawn()
    })?
}
