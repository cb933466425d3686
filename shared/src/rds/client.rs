//! The client: calls that wait where RDS asks to, and errors with a meaning.

use std::time::Duration;

use aws_sdk_rds::config::retry::RetryConfig;
use aws_sdk_rds::config::timeout::TimeoutConfig;
use aws_sdk_rds::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use jiff::Timestamp;

use crate::rds::{RdsError, RdsErrorKind};

/// Of the SDK's own, with its jittered pauses, for one of the rounds below.
const ATTEMPTS: u32 = 4;
/// RDS throttles an account as a whole, and for longer than the SDK waits.
const ROUNDS: u32 = 3;
const ROUND_PAUSE: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// The most a Describe call answers at once (Amazon RDS API Reference, MaxRecords).
pub(super) const PAGE: i32 = 100;

#[derive(Debug, Clone)]
pub struct Rds {
    pub(super) client: aws_sdk_rds::Client,
}

impl Rds {
    pub fn new(aws: &aws_config::SdkConfig) -> Self {
        let config = aws_sdk_rds::config::Builder::from(aws)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                    .build(),
            )
            .build();
        Self { client: aws_sdk_rds::Client::from_conf(config) }
    }

    /// The region it calls.
    pub fn region(&self) -> Option<&str> {
        self.client.config().region().map(AsRef::as_ref)
    }

    /// One call, made again while RDS throttles, within bounds.
    pub(super) async fn call<T, E, F>(
        &self,
        operation: &'static str,
        about: &str,
        attempt: impl Fn() -> F,
    ) -> Result<T, RdsError>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let (mut round, mut pause) = (1, ROUND_PAUSE);
        loop {
            match attempt().await.map_err(|error| RdsError::from_sdk(operation, about, error)) {
                Err(error) if error.kind == RdsErrorKind::Throttled && round < ROUNDS => {
                    tracing::info!(operation, pause_seconds = pause.as_secs(), "RDS throttles; waiting");
                    tokio::time::sleep(pause).await;
                    (round, pause) = (round + 1, pause * 2);
                }
                result => return result,
            }
        }
    }
}

pub(super) fn moment(time: Option<&aws_sdk_rds::primitives::DateTime>) -> Option<Timestamp> {
    time.and_then(|time| Timestamp::from_second(time.secs()).ok())
}
