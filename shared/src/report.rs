//! Tells what became of an invocation: the error in the log, metrics, and what people are told.
//!
//! Each metric has the app's name for a dimension: two deployments of one environment would hide each other's missing backups.

use serde_json::{Value, json};

use crate::config::NotifyConfig;
use crate::domain::Environment;
use crate::fault::Fault;
use crate::notify::Notifier;
use crate::telemetry::{Unit, emit_metrics};

pub struct Reporter {
    app_name: String,
    environment: Environment,
    notifier: Notifier,
}

impl Reporter {
    pub fn new(
        aws: &aws_config::SdkConfig,
        notify: NotifyConfig,
        app_name: impl Into<String>,
        environment: Environment,
    ) -> Self {
        Self { app_name: app_name.into(), environment, notifier: Notifier::new(aws, notify) }
    }

    /// Emits metrics of the environment.
    pub fn measure(&self, metrics: &[(&str, Unit, f64)], properties: &[(&str, Value)]) {
        emit_metrics(&[("App", &self.app_name), ("Environment", self.environment.as_str())], metrics, properties);
    }

    /// Emits metrics of one database; retention looks after those of other environments as well.
    pub fn measure_database(
        &self,
        environment: &Environment,
        database: &str,
        metrics: &[(&str, Unit, f64)],
        properties: &[(&str, Value)],
    ) {
        let dimensions =
            [("App", self.app_name.as_str()), ("Environment", environment.as_str()), ("Database", database)];
        emit_metrics(&dimensions, metrics, properties);
    }

    /// One more of them, in the environment.
    pub fn count(&self, metric: &str, properties: &[(&str, Value)]) {
        self.measure(&[(metric, Unit::Count, 1.0)], properties);
    }

    /// An error as it leaves the function: logged, counted under `metric` with its code, and told. `what`, such as
    /// "backup failed", is the log's message and the notification's subject.
    pub async fn fault(&self, metric: &str, what: &str, fault: &Fault) {
        tracing::error!(code = fault.code, error = %fault, "{what}");
        self.count(metric, &[("code", json!(fault.code))]);
        self.alert(&format!("{what} ({})", fault.code), &fault.to_string()).await;
    }

    /// Tells people of what they should look at.
    pub async fn alert(&self, what: &str, message: &str) {
        self.notifier.failure(&self.subject(what), message).await;
    }

    /// Tells people of a success, where they want to be told.
    pub async fn success(&self, what: &str, message: &str) {
        self.notifier.success(&self.subject(what), message).await;
    }

    fn subject(&self, what: &str) -> String {
        format!("{} {}: {what}", self.app_name, self.environment)
    }
}
