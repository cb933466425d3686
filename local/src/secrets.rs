//! Secrets Manager, as far as `GetSecretValue` goes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const READ: &str = "secretsmanager.GetSecretValue";

#[derive(Debug, Default)]
struct Vault {
    secrets: BTreeMap<String, String>,
    reads: usize,
}

/// A server that knows some secrets. It stops as it is dropped.
#[derive(Debug)]
pub struct SecretsServer {
    endpoint: String,
    vault: Arc<Mutex<Vault>>,
    serving: JoinHandle<()>,
}

impl SecretsServer {
    /// # Errors
    /// No port is free.
    pub async fn start() -> std::io::Result<Self> {
        let vault = Arc::new(Mutex::new(Vault::default()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let router = Router::new().route("/", post(answer)).with_state(Arc::clone(&vault));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { endpoint, vault, serving })
    }

    /// For `AWS_ENDPOINT_URL_SECRETS_MANAGER`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Puts a secret there, or another text into it.
    pub fn set(&self, arn: impl Into<String>, text: impl Into<String>) {
        locked(&self.vault).secrets.insert(arn.into(), text.into());
    }

    /// How often a secret was asked for.
    pub fn reads(&self) -> usize {
        locked(&self.vault).reads
    }
}

impl Drop for SecretsServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn locked(vault: &Mutex<Vault>) -> MutexGuard<'_, Vault> {
    vault.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(vault): State<Arc<Mutex<Vault>>>, headers: HeaderMap, body: String) -> Response {
    if headers.get("x-amz-target").is_none_or(|target| target != READ) {
        return refusal("UnknownOperationException", "only GetSecretValue is answered here");
    }
    let request: Value = serde_json::from_str(&body).unwrap_or_default();
    let mut vault = locked(&vault);
    vault.reads += 1;
    let arn = request["SecretId"].as_str().unwrap_or_default();
    let Some(text) = vault.secrets.get(arn) else {
        return refusal("ResourceNotFoundException", "Secrets Manager can't find the specified secret.");
    };
    json_answer(StatusCode::OK, &json!({"ARN": arn, "Name": arn, "SecretString": text}))
}

fn refusal(kind: &str, message: &str) -> Response {
    json_answer(StatusCode::BAD_REQUEST, &json!({"__type": kind, "Message": message}))
}

fn json_answer(status: StatusCode, body: &Value) -> Response {
    (status, [(CONTENT_TYPE, "application/x-amz-json-1.1")], body.to_string()).into_response()
}
