//! The S3 side: the local stack's server in a process of its own, so that its CPU time is nobody else's.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use holdfast_local::s3::{BucketOptions, S3Options, S3Server};
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::measure::{Cost, Measured};

pub const BUCKET: &str = "benchmark";

/// What the process says when it is ready.
#[derive(Serialize, Deserialize)]
struct Ready {
    endpoint: String,
}

/// What it says at its end.
#[derive(Serialize, Deserialize)]
struct Received {
    largest_object_bytes: u64,
}

/// The process: serves from memory until its standard input ends.
pub async fn serve() -> Result<(), BenchError> {
    let server = S3Server::start(S3Options::default()).await?;
    server.store().create_bucket(BUCKET, BucketOptions::default())?;
    say(&Ready { endpoint: server.endpoint() })?;
    let waited = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await?;
    waited.map_err(BenchError::io("cannot read standard input"))?;
    let largest_object_bytes = server.store().objects(BUCKET).iter().map(|object| object.size).max().unwrap_or(0);
    say(&Received { largest_object_bytes })
}

fn say(message: &impl Serialize) -> Result<(), BenchError> {
    let failed = "cannot write to standard output";
    let line = serde_json::to_string(message).map_err(|error| BenchError::io(failed)(error.into()))?;
    let mut output = std::io::stdout();
    writeln!(output, "{line}").and_then(|()| output.flush()).map_err(BenchError::io(failed))
}

/// A running server, new for each run: no run inherits the memory of the one before.
pub struct Sink {
    process: Measured,
    messages: BufReader<std::process::ChildStdout>,
    pub endpoint: String,
}

/// What a run left in it.
pub struct Stored {
    pub largest_object_bytes: u64,
    pub cost: Cost,
}

impl Sink {
    pub fn start() -> Result<Sink, BenchError> {
        let mut command = own_command("s3-sink")?;
        let mut process = Measured::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let output = process.child().stdout.take();
        let mut messages = BufReader::new(output.ok_or_else(|| unreadable("the S3 server's output"))?);
        let ready: Ready = heard(&mut messages)?;
        Ok(Sink { process, messages, endpoint: ready.endpoint })
    }

    pub async fn finish(mut self) -> Result<Stored, BenchError> {
        drop(self.process.child().stdin.take());
        let received: Received = heard(&mut self.messages)?;
        let cost = self.process.finish().await?;
        Ok(Stored { largest_object_bytes: received.largest_object_bytes, cost })
    }
}

fn heard<T: serde::de::DeserializeOwned>(messages: &mut impl BufRead) -> Result<T, BenchError> {
    let mut line = String::new();
    messages.read_line(&mut line).map_err(BenchError::io("cannot read from the S3 server"))?;
    serde_json::from_str(&line).map_err(|_| unreadable("the S3 server's message"))
}

fn unreadable(what: &str) -> BenchError {
    BenchError::Missing { what: what.to_owned() }
}

/// One of this program's other roles, as a process of its own.
pub fn own_command(role: &str) -> Result<Command, BenchError> {
    let program = std::env::current_exe().map_err(BenchError::io("cannot tell where this program is"))?;
    let mut command = Command::new(program);
    command.arg(role);
    Ok(command)
}
