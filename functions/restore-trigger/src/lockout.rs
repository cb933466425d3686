//! Counts wrong passkeys over all instances of the function, and locks restores after five.
//!
//! An attempt is written down before its passkey is looked at, and taken back once it was right: however many come
//! at once, no more than five guesses are looked at within the window. Who dies in between has guessed wrong.

use std::time::Duration;

use holdfast_shared::domain::{Environment, ObjectKey};
use holdfast_shared::fault::Fault;
use holdfast_shared::store::client::Condition;
use holdfast_shared::store::{PutOutcome, Store};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub const MAX_FAILURES: usize = 5;
pub const WINDOW: SignedDuration = SignedDuration::from_mins(15);
pub const LOCK: SignedDuration = SignedDuration::from_mins(15);
/// After this an attempt of which nothing was heard counts as wrong.
const PENDING_LIMIT: SignedDuration = SignedDuration::from_secs(60);
const ROUNDS: u32 = 40;
const PAUSE: Duration = Duration::from_millis(15);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

/// What lies at `restores/lockout/{environment}.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    pub attempts: Vec<Attempt>,
    #[serde(default)]
    pub locked_until: Option<Timestamp>,
    /// Who wrote it, and at which of its writes: no two writes are the same.
    #[serde(default)]
    pub written_by: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub at: Timestamp,
    pub request_id: String,
    /// Known to have been wrong; else not known yet.
    pub failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The passkey may be looked at.
    Admitted,
    Locked {
        until: Timestamp,
    },
    /// As many as may fail are being looked at.
    Busy,
}

impl State {
    /// Forgets what is past, and counts the silent as wrong.
    fn settle(&mut self, now: Timestamp) {
        self.locked_until = self.locked_until.filter(|until| *until > now);
        for attempt in &mut self.attempts {
            attempt.failed |= attempt.at.duration_until(now) >= PENDING_LIMIT;
        }
        self.attempts.retain(|attempt| attempt.at.duration_until(now) < WINDOW);
        self.lock_if_due(now);
    }

    fn lock_if_due(&mut self, now: Timestamp) {
        if self.locked_until.is_none() && self.attempts.iter().filter(|attempt| attempt.failed).count() >= MAX_FAILURES
        {
            self.locked_until = Some(now + LOCK);
            // The lock stands for them: once it ends the count begins anew.
            self.attempts.retain(|attempt| !attempt.failed);
        }
    }

    /// Asks for one look at a passkey.
    pub fn admit(&mut self, now: Timestamp, request_id: &str) -> Admission {
        self.settle(now);
        if let Some(until) = self.locked_until {
            return Admission::Locked { until };
        }
        if self.attempts.len() >= MAX_FAILURES {
            return Admission::Busy;
        }
        self.attempts.push(Attempt { at: now, request_id: request_id.to_owned(), failed: false });
        Admission::Admitted
    }

    /// The passkey was wrong.
    pub fn fail(&mut self, now: Timestamp, request_id: &str) {
        for attempt in self.attempts.iter_mut().filter(|attempt| attempt.request_id == request_id) {
            attempt.failed = true;
        }
        self.settle(now);
    }

    /// The passkey was right, or never looked at.
    pub fn withdraw(&mut self, now: Timestamp, request_id: &str) {
        self.attempts.retain(|attempt| attempt.request_id != request_id || attempt.failed);
        self.settle(now);
    }
}

/// The state in the bucket, as one request sees it.
pub struct Lockout<'a> {
    store: &'a Store,
    key: ObjectKey,
    request_id: &'a str,
}

impl<'a> Lockout<'a> {
    pub fn new(store: &'a Store, environment: &Environment, request_id: &'a str) -> Self {
        Self { store, key: ObjectKey::Lockout { environment: environment.clone() }, request_id }
    }

    /// The end of the lock, if there is one now.
    pub async fn locked_until(&self) -> Result<Option<Timestamp>, Fault> {
        let now = Timestamp::now();
        let (mut state, _) = self.read().await?;
        state.settle(now);
        Ok(state.locked_until)
    }

    /// Writes the attempt down, if one more may be made. Waits while others are being judged.
    pub async fn admit(&self) -> Result<Admission, Fault> {
        for round in 0..ROUNDS {
            let mut admission = Admission::Busy;
            let written = self.try_change(round, |state, now, id| admission = state.admit(now, id)).await?;
            match admission {
                Admission::Admitted if !written => {}
                Admission::Busy => {}
                decided => return Ok(decided),
            }
            self.pause(round).await;
        }
        Ok(Admission::Busy)
    }

    pub async fn fail(&self) -> Result<(), Fault> {
        self.change(State::fail).await
    }

    pub async fn withdraw(&self) -> Result<(), Fault> {
        self.change(State::withdraw).await
    }

    async fn change(&self, change: fn(&mut State, Timestamp, &str)) -> Result<(), Fault> {
        for round in 0..ROUNDS {
            if self.try_change(round, change).await? {
                return Ok(());
            }
            self.pause(round).await;
        }
        Err(contended())
    }

    /// One read, change and conditional write; `false` where another request was quicker.
    async fn try_change(&self, round: u32, change: impl FnOnce(&mut State, Timestamp, &str)) -> Result<bool, Fault> {
        let now = Timestamp::now();
        let (before, etag) = self.read().await?;
        let mut after = before.clone();
        change(&mut after, now, self.request_id);
        if after == before {
            return Ok(true);
        }
        after.written_by = format!("{} {now} {round}", self.request_id);
        let body = serde_json::to_vec(&after).map_err(|error| Fault::from_error("internal", &error))?;
        let condition = etag.as_deref().map_or(Condition::Absent, Condition::Etag);
        let outcome = self.store.put_if(&self.key, body.into(), condition).await?;
        Ok(matches!(outcome, PutOutcome::Written { .. }))
    }

    async fn read(&self) -> Result<(State, Option<String>), Fault> {
        match self.store.get(&self.key).await? {
            None => Ok((State::default(), None)),
            // What cannot be read allows nothing.
            Some((json, etag)) => match serde_json::from_slice(&json) {
                Ok(state) => Ok((state, Some(etag))),
                Err(error) => Err(Fault::from_error("restore-lockout-unreadable", &error)
                    .with_context(&self.key.to_string())
                    .hint("see who wrote it; without the object the count begins anew")),
            },
        }
    }

    /// Longer from round to round, and different for each request.
    async fn pause(&self, round: u32) {
        let spread =
            self.request_id.bytes().fold(round, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
        let pause = (PAUSE * (round + 1)).min(LONGEST_PAUSE);
        tokio::time::sleep(pause.mul_f64(0.5 + f64::from(spread % 1_000) / 1_000.0)).await;
    }
}

/// More attempts at once than can be told apart: none of them is looked at.
pub fn contended() -> Fault {
    Fault::new("restore-lockout-contended", "too many restores are being asked for at once")
        .hint("ask again; if it was not you, look at CloudTrail")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_750_000_000 + seconds).unwrap()
    }

    fn guess_wrong(state: &mut State, second: i64) -> Admission {
        let id = format!("r{second}");
        let admission = state.admit(at(second), &id);
        if admission == Admission::Admitted {
            state.fail(at(second), &id);
        }
        admission
    }

    #[test]
    fn five_wrong_within_the_window_lock_for_the_lock() {
        let mut state = State::default();
        for second in 0..5 {
            assert_eq!(guess_wrong(&mut state, second), Admission::Admitted);
        }
        let until = at(4) + LOCK;
        assert_eq!(guess_wrong(&mut state, 5), Admission::Locked { until });
        assert_eq!(guess_wrong(&mut state, 903), Admission::Locked { until }, "asking again makes it no longer");
        assert_eq!(guess_wrong(&mut state, 904), Admission::Admitted);
    }

    #[test]
    fn four_within_the_window_do_not() {
        let mut state = State::default();
        for second in [0, 300, 600, 899, 900, 1_200] {
            assert_eq!(guess_wrong(&mut state, second), Admission::Admitted, "{second}");
        }
        assert_eq!(state.locked_until, None);
    }

    #[test]
    fn parallel_guesses_are_admitted_only_as_far_as_they_may_fail() {
        let mut state = State::default();
        let admitted = (0..100).filter(|n| state.admit(at(0), &format!("r{n}")) == Admission::Admitted).count();
        assert_eq!(admitted, MAX_FAILURES);
        assert_eq!(state.admit(at(1), "late"), Admission::Busy);
        // One was right: there is room for another one.
        state.withdraw(at(2), "r0");
        assert_eq!(state.admit(at(2), "late"), Admission::Admitted);
    }

    #[test]
    fn who_dies_while_being_judged_has_guessed_wrong() {
        let mut state = State::default();
        for n in 0..5 {
            state.admit(at(0), &format!("r{n}"));
        }
        assert_eq!(state.admit(at(59), "x"), Admission::Busy);
        assert_eq!(state.admit(at(60), "x"), Admission::Locked { until: at(60) + LOCK });
    }

    #[test]
    fn a_right_one_takes_back_its_own_attempt_and_no_others() {
        let mut state = State::default();
        guess_wrong(&mut state, 0);
        state.admit(at(1), "right");
        state.withdraw(at(1), "right");
        state.withdraw(at(1), "r0");
        assert_eq!(state.attempts.len(), 1);
    }

    proptest! {
        /// Whatever comes in whatever order: in no window are more than five wrong passkeys looked at.
        #[test]
        fn no_window_sees_more_than_five_wrong_ones(steps in proptest::collection::vec((0i64..400, 0u8..4), 1..200)) {
            let mut state = State::default();
            let mut second = 0;
            let mut open: Vec<String> = Vec::new();
            let mut looked_at: Vec<(String, i64)> = Vec::new();
            let mut right: Vec<String> = Vec::new();
            for (number, (pause, what)) in steps.into_iter().enumerate() {
                second += pause / 4;
                match what {
                    0 | 1 => {
                        let id = format!("r{number}");
                        if state.admit(at(second), &id) == Admission::Admitted {
                            looked_at.push((id.clone(), second));
                            open.push(id);
                        }
                    }
                    2 => if let Some(id) = open.pop() { state.fail(at(second), &id) },
                    _ => if let Some(id) = open.pop() {
                        state.withdraw(at(second), &id);
                        right.push(id);
                    },
                }
            }
            let wrong: Vec<i64> = looked_at.iter().filter(|(id, _)| !right.contains(id)).map(|(_, at)| *at).collect();
            for start in &wrong {
                let within = wrong.iter().filter(|second| (*start..start + WINDOW.as_secs()).contains(*second)).count();
                prop_assert!(within <= MAX_FAILURES, "{within} from {start}");
            }
        }
    }
}
