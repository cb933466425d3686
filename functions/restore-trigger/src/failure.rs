//! Why an invocation ends without a restore, and what is answered to one that comes again.

use holdfast_shared::fault::Fault;
use serde_json::{Value, json};

use crate::audit::{Record, RecordState};

/// Why an invocation ends without a restore.
pub enum Failure {
    /// A rule is against it. Nothing was begun.
    Refused(Fault),
    Failed(Fault),
    /// It has been counted and told before.
    Told(Fault),
}

impl Failure {
    pub fn fault(&self) -> &Fault {
        match self {
            Self::Refused(fault) | Self::Failed(fault) | Self::Told(fault) => fault,
        }
    }
}

impl<E: Into<Fault>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What is wrong with what was asked for is a refusal; a store that does not answer is a failure.
pub fn not_to_be_had(fault: Fault) -> Failure {
    const REFUSED: [&str; 13] = [
        "backup-not-found",
        "backup-expired",
        "manifest-unreadable",
        "import-not-found",
        // Seen only once the archive and the live tables are.
        "import-not-an-archive",
        "restore-tables-not-found",
        "restore-tables-collide",
        "restore-table-without-rows",
        "restore-table-missing",
        "restore-columns-differ",
        "restore-definition-missing",
        "restore-rows-would-dangle",
        "restore-schema-exists",
    ];
    if REFUSED.contains(&fault.code) { Failure::Refused(fault) } else { Failure::Failed(fault) }
}

pub fn deadline_fault(how_far: &str) -> Fault {
    Fault::new("deadline-reached", format!("the restore was not done before the function's timeout, {how_far}"))
        .hint("raise the function's Timeout or MemorySize, or restore fewer tables")
}

/// It is not begun again by itself.
pub fn interrupted(request_id: &str) -> Fault {
    Fault::new("restore-interrupted", format!("the invocation that carried out {request_id} died before it was done"))
        .hint("look at what it left on the server, and ask again; live data is the old or the new, whole")
}

/// What a request is answered with that is being run.
pub fn in_progress(record: &Record, invocation: &str) -> Result<Value, Failure> {
    // A schedule's event may be delivered twice. Nobody is there to be told, and an error would be one in Lambda's metrics.
    if let Some(other) = record.invocation.as_deref().filter(|other| *other != invocation) {
        let reason = format!("invocation {other} has been running this since {}", record.started);
        tracing::info!(reason, "nothing to do");
        return Ok(json!({"status": "ignored", "reason": reason}));
    }
    let message = format!("this request has been running since {}", record.started);
    Err(Failure::Told(
        Fault::new("restore-in-progress", message)
            .hint(format!("its outcome is in its record once it ends, at the latest at {}", record.running_until)),
    ))
}

/// What a request is answered with that has been answered before: the same again, and nothing is done.
pub fn answered(record: Record) -> Result<Value, Failure> {
    if let Some(mut outcome) = record.outcome {
        tracing::info!("this request has been answered already");
        outcome["duplicate"] = json!(true);
        return Ok(outcome);
    }
    let problem = record.problems.first();
    let what = problem
        .map_or_else(|| "no reason was kept".to_owned(), |problem| format!("{}: {}", problem.code, problem.message));
    let state = if record.state == RecordState::Refused { "refused" } else { "ended in a failure" };
    let message = format!("this request was {state} at {}: {what}", record.updated);
    Err(Failure::Told(
        Fault::new("restore-already-answered", message).hint("a request is run once; ask again with a new invocation"),
    ))
}
