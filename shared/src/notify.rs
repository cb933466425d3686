//! Tells people, by SNS.

use std::time::Duration;

use aws_sdk_sns::config::timeout::TimeoutConfig;

use crate::config::NotifyConfig;
use crate::fault::chain;

/// A run does not wait longer than this for its notification.
const PUBLISH_LIMIT: Duration = Duration::from_secs(3);
/// Amazon SNS's limit for subjects ("Publish" in the API reference).
const SUBJECT_LIMIT: usize = 100;

pub struct Notifier {
    client: aws_sdk_sns::Client,
    config: NotifyConfig,
}

impl Notifier {
    pub fn new(aws: &aws_config::SdkConfig, config: NotifyConfig) -> Self {
        let limit = TimeoutConfig::builder().operation_timeout(PUBLISH_LIMIT).build();
        let sdk = aws_sdk_sns::config::Builder::from(aws).timeout_config(limit).build();
        Self { client: aws_sdk_sns::Client::from_conf(sdk), config }
    }

    /// What somebody should look at.
    pub async fn failure(&self, subject: &str, message: &str) {
        self.publish(subject, message).await;
    }

    /// Sent only where the configuration asks for successes, too.
    pub async fn success(&self, subject: &str, message: &str) {
        if self.config.on_success {
            self.publish(subject, message).await;
        }
    }

    /// A notification that cannot be sent is logged and changes nothing: the failure itself is an error of the
    /// invocation, and a success is a success.
    async fn publish(&self, subject: &str, message: &str) {
        let Some(topic) = &self.config.topic_arn else { return };
        let subject: String =
            subject.chars().filter(|c| c.is_ascii() && !c.is_ascii_control()).take(SUBJECT_LIMIT).collect();
        let sent = self.client.publish().topic_arn(topic).subject(subject).message(message).send().await;
        if let Err(error) = sent {
            tracing::warn!(error = chain(&error), "the notification could not be sent");
        }
    }
}
