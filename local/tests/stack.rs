//! `local up` as a user runs it. Needs the function binaries: `cargo build --workspace`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

struct Running {
    process: Child,
    about: Value,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_local"));
    command.arg("up").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn up(arguments: &[&str]) -> Running {
    let mut process = command(arguments).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let about = serde_json::from_str(&line).unwrap_or_else(|_| {
        let mut errors = String::new();
        process.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        panic!("no description: {errors}")
    });
    Running { process, about }
}

impl Running {
    fn port(&self, part: &str) -> u16 {
        self.about[part].as_str().unwrap().rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap()
    }

    fn end(&mut self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether the port is closed within a few seconds.
fn closes(port: u16) -> bool {
    let began = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
        if began.elapsed() > Duration::from_secs(5) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

fn database_port(running: &Running) -> u16 {
    running.about["database_url"]
        .as_str()
        .unwrap()
        .rsplit_once('@')
        .unwrap()
        .1
        .split([':', '/'])
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn up_describes_itself_in_one_line_and_leaves_nothing_behind() {
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let mut running = up(&["--empty"]);
        let mut names: Vec<_> = running.about.as_object().unwrap().keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            ["access_key", "bucket", "database_url", "lambda", "passkey", "rds", "region", "s3", "secret_key"]
        );
        assert_eq!(running.about["bucket"], "holdfast-backups");
        let ports = [running.port("s3"), running.port("lambda"), database_port(&running)];
        running.end(signal);
        let mut rest = String::new();
        running.process.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "one line only");
        for port in ports {
            assert!(closes(port), "port {port} is still open after {signal:?}");
        }
    }
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for option in ["--s3-port", "--lambda-port"] {
        let output = command(&["--empty", option, &address.port().to_string()]).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(errors.contains(&format!("cannot listen on {address}")) && errors.contains("in use"), "{errors}");
    }
}

#[test]
fn a_database_of_ones_own_is_used_and_the_bucket_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let url = "postgres://someone:secret@127.0.0.1:1/theirs";
    let running = up(&["--database-url", url, "--data", folder.path().to_str().unwrap()]);
    assert_eq!(running.about["database_url"], url);
    assert!(Path::new(folder.path()).read_dir().unwrap().next().is_some());
}
