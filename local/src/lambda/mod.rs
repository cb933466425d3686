//! AWS Lambda on this machine: the Runtime API that functions are written against and the Invoke API that callers use.
//!
//! Each instance is a real process of the function's binary, and sees what it would see in AWS: one invocation at a time, the real
//! deadline, a cleared environment, SIGKILL at the timeout. Callers see AWS's status codes, headers and error payloads.
//! Deliberately absent: signatures, layers, extensions, response streaming, freezing between invocations.

mod error;
mod function;
mod instance;
mod invoke_api;
mod logs;
mod queue;
mod runtime_api;
mod server;
mod spec;

pub use error::LambdaError;
pub use queue::AsyncFailure;
pub use server::LambdaServer;
pub use spec::{FunctionSpec, InvokeOptions, InvokeOutcome, LambdaOptions};
