//! Text that is never printed, and where it is kept.

use std::fmt;

use serde_json::{Map, Value};

use crate::fault::Fault;

/// A password or key; `Debug` and `Display` show `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the secret {arn} cannot be read")]
    Unreadable {
        arn: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The text never quotes the secret.
    #[error("the secret {arn} is not what is expected: {problem}")]
    Malformed { arn: String, problem: String },
}

/// A Secrets Manager secret that holds text.
pub async fn read_text(arn: &str, aws: &aws_config::SdkConfig) -> Result<Secret, SecretError> {
    let client = aws_sdk_secretsmanager::Client::new(aws);
    let sent = client.get_secret_value().secret_id(arn).send().await;
    let secret = sent.map_err(|source| SecretError::Unreadable { arn: arn.to_owned(), source: Box::new(source) })?;
    let text = secret.secret_string.map(Secret::new);
    text.ok_or_else(|| SecretError::Malformed { arn: arn.to_owned(), problem: "it holds no text".to_owned() })
}

/// A Secrets Manager secret that holds a JSON object.
pub async fn read_json(arn: &str, aws: &aws_config::SdkConfig) -> Result<Map<String, Value>, SecretError> {
    let text = read_text(arn, aws).await?;
    // A parser's message can quote what it parses: only the fact is passed on.
    let parsed = serde_json::from_str(text.expose()).ok();
    parsed.ok_or_else(|| SecretError::Malformed { arn: arn.to_owned(), problem: "it is not a JSON object".to_owned() })
}

/// A field that has to be there, as text.
pub fn text_field(secret: &Map<String, Value>, arn: &str, field: &str) -> Result<String, SecretError> {
    secret.get(field).and_then(Value::as_str).map(str::to_owned).ok_or_else(|| SecretError::Malformed {
        arn: arn.to_owned(),
        problem: format!("it has no text under {field:?}"),
    })
}

impl From<SecretError> for Fault {
    fn from(error: SecretError) -> Self {
        Self::from_error("secret-unreadable", &error)
            .hint("the function's role needs secretsmanager:GetSecretValue on it, and in a VPC an endpoint or NAT")
    }
}
