//! The Lambda API as `aws lambda` and the SDKs speak it: invoke, list and get functions. Signatures are not checked.

use std::sync::Arc;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::LambdaError;
use super::function::{Function, RawOutcome, billed};
use super::server::Core;
use super::spec::InvokeOptions;

/// More than any payload limit, so that those are what a caller meets first.
const BODY_LIMIT_BYTES: usize = 64 << 20;
const LOG_TAIL_BYTES: usize = 4096;

pub(super) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/2015-03-31/functions/{reference}/invocations", post(invoke))
        .route("/2015-03-31/functions", get(list))
        .route("/2015-03-31/functions/", get(list))
        .route("/2015-03-31/functions/{reference}", get(describe))
        .with_state(core)
}

async fn invoke(
    State(core): State<Arc<Core>>,
    Path(reference): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    match try_invoke(&core, &reference, &headers, body).await {
        Ok(response) => response,
        Err(error) => error.response(),
    }
}

async fn try_invoke(
    core: &Core,
    reference: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response<Body>, LambdaError> {
    let function = core.function(reference)?;
    let too_large = |_| LambdaError::RequestTooLarge { size_bytes: BODY_LIMIT_BYTES, limit_bytes: BODY_LIMIT_BYTES };
    let body = to_bytes(body, BODY_LIMIT_BYTES).await.map_err(too_large)?;
    let payload = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
    serde_json::from_slice::<serde::de::IgnoredAny>(&payload)
        .map_err(|source| LambdaError::InvalidContent { source })?;

    match text(headers, "x-amz-invocation-type").unwrap_or("RequestResponse") {
        "RequestResponse" => {
            let outcome = core.invoke_now(&function, payload, InvokeOptions::default()).await?;
            Ok(synchronous(&function, outcome, text(headers, "x-amz-log-type") == Some("Tail")))
        }
        "Event" => {
            let request_id = core.invoke_later(function, payload, InvokeOptions::default())?;
            Ok(respond(StatusCode::ACCEPTED, &request_id, Bytes::new()))
        }
        "DryRun" => Ok(respond(StatusCode::NO_CONTENT, "dry-run", Bytes::new())),
        other => Err(LambdaError::InvalidInvocationType { given: other.to_owned() }),
    }
}

fn synchronous(function: &Function, outcome: RawOutcome, with_log: bool) -> Response<Body> {
    let tail = with_log.then(|| log_tail(function, &outcome));
    let mut response = respond(StatusCode::OK, &outcome.request_id, outcome.payload);
    let headers = response.headers_mut();
    headers.insert("x-amz-executed-version", HeaderValue::from_static("$LATEST"));
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    if outcome.failed {
        headers.insert("x-amz-function-error", HeaderValue::from_static("Unhandled"));
    }
    if let Some(tail) = tail {
        insert(headers, "x-amz-log-result", &tail);
    }
    response
}

/// The end of the log with AWS's own lines around the function's, in base64.
fn log_tail(function: &Function, outcome: &RawOutcome) -> String {
    let (id, finished) = (&outcome.request_id, &outcome.finished);
    let mut log = format!("START RequestId: {id} Version: $LATEST\n");
    for line in &finished.log {
        log.push_str(line);
        log.push('\n');
    }
    log.push_str(&format!(
        "END RequestId: {id}\nREPORT RequestId: {id}\tDuration: {:.2} ms\tBilled Duration: {} ms\tMemory Size: {} MB\tMax Memory Used: {} MB\t\n",
        finished.duration.as_secs_f64() * 1000.0,
        billed(finished.duration).as_millis(),
        function.spec.memory_mb,
        finished.max_rss_kb.div_ceil(1024),
    ));
    let bytes = log.as_bytes();
    STANDARD.encode(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..])
}

async fn list(State(core): State<Arc<Core>>) -> Json<Value> {
    let functions: Vec<Value> = core.all().iter().map(|function| configuration(function)).collect();
    Json(json!({ "Functions": functions }))
}

async fn describe(State(core): State<Arc<Core>>, Path(reference): Path<String>) -> Response<Body> {
    match core.function(&reference) {
        Ok(function) => {
            let body = json!({ "Configuration": configuration(&function) }).to_string();
            respond(StatusCode::OK, "get-function", body.into())
        }
        Err(error) => error.response(),
    }
}

/// Environment variables stay out of it: they may hold a password.
fn configuration(function: &Function) -> Value {
    json!({
        "FunctionName": function.spec.name,
        "FunctionArn": function.arn,
        "Runtime": "provided.al2023",
        "Handler": "bootstrap",
        "Timeout": function.spec.timeout.as_secs(),
        "MemorySize": function.spec.memory_mb,
        "Version": "$LATEST",
        "State": "Active",
        "PackageType": "Zip",
    })
}

fn respond(status: StatusCode, request_id: &str, payload: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(payload));
    *response.status_mut() = status;
    insert(response.headers_mut(), "x-amzn-requestid", request_id);
    response
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
