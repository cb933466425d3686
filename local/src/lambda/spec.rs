//! What a caller tells the emulator about itself, a function and an invocation, and what comes back.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

#[derive(Debug, Clone)]
pub struct LambdaOptions {
    /// Where the Invoke API listens; port 0 takes a free one.
    pub listen: SocketAddr,
    pub region: String,
    pub account_id: String,
    /// Also writes every line of every function to this process's standard error.
    pub echo_logs: bool,
}

impl Default for LambdaOptions {
    fn default() -> Self {
        LambdaOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            region: "us-east-1".into(),
            account_id: "123456789012".into(),
            echo_logs: false,
        }
    }
}

#[derive(Debug, Clone)]
pub struct FunctionSpec {
    pub name: String,
    /// The `bootstrap` that AWS would run.
    pub binary: PathBuf,
    pub environment: BTreeMap<String, String>,
    pub timeout: Duration,
    /// An instance that grows past it is killed, as in AWS. Counts the function's own process, not its children.
    pub memory_mb: u32,
    /// Reserved concurrency; `None` is unlimited.
    pub max_concurrency: Option<u32>,
    /// How often an asynchronous event that failed is delivered again.
    pub asynchronous_retries: u8,
    /// A minute and then two in AWS.
    pub retry_delay: Duration,
}

impl FunctionSpec {
    /// AWS's defaults where there are any, except a retry delay that a test can wait for.
    pub fn new(name: impl Into<String>, binary: impl Into<PathBuf>) -> Self {
        FunctionSpec {
            name: name.into(),
            binary: binary.into(),
            environment: BTreeMap::new(),
            timeout: Duration::from_secs(60),
            memory_mb: 1024,
            max_concurrency: None,
            asynchronous_retries: 2,
            retry_delay: Duration::from_millis(100),
        }
    }

    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }
}

#[derive(Debug, Clone, Default)]
pub struct InvokeOptions {
    /// Chosen by the emulator when `None`.
    pub request_id: Option<String>,
    /// Queued like an `Event` invocation: the outcome holds only the request id.
    pub asynchronous: bool,
    /// Instead of the function's own.
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct InvokeOutcome {
    /// What the function returned, or AWS's error object.
    pub payload: Value,
    /// `Unhandled` when the invocation failed.
    pub function_error: Option<String>,
    /// What the function printed during this invocation (a cold start's lines belong to its first).
    pub log: Vec<String>,
    pub request_id: String,
    /// Rounded up to a millisecond, without the cold start.
    pub billed: Duration,
    /// Peak resident memory of the function's process so far; 0 where it died before it was measured.
    pub max_rss_kb: u64,
}

impl InvokeOutcome {
    pub fn is_error(&self) -> bool {
        self.function_error.is_some()
    }
}
