//! The Runtime API of one instance (AWS Lambda developer guide, "Using the Lambda runtime API for custom runtimes").

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, State};
use axum::http::{Response, StatusCode};
use axum::routing::{get, post};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::instance::{Assignment, Reply};
use super::logs::lock;

/// AWS's limit for a synchronous response: 6 MB and some room for its envelope.
pub(super) const RESPONSE_LIMIT_BYTES: usize = 6_291_556;

struct Api {
    queue: tokio::sync::Mutex<mpsc::Receiver<Assignment>>,
    /// Invocations handed out and not answered yet. One at most, unless the runtime asks for the next before it answers.
    open: Mutex<HashMap<String, oneshot::Sender<Reply>>>,
    init_error: Arc<Mutex<Option<Bytes>>>,
}

pub(super) fn router(queue: mpsc::Receiver<Assignment>, init_error: Arc<Mutex<Option<Bytes>>>) -> Router {
    let api = Api { queue: tokio::sync::Mutex::new(queue), open: Mutex::default(), init_error };
    Router::new()
        .route("/2018-06-01/runtime/invocation/next", get(next))
        .route("/2018-06-01/runtime/invocation/{request_id}/response", post(response))
        .route("/2018-06-01/runtime/invocation/{request_id}/error", post(error))
        .route("/2018-06-01/runtime/init/error", post(init_error_reported))
        .with_state(Arc::new(api))
}

async fn next(State(api): State<Arc<Api>>) -> Response<Body> {
    let Some(Assignment { work, started, reply }) = api.queue.lock().await.recv().await else {
        return answer(StatusCode::INTERNAL_SERVER_ERROR, "ShuttingDown");
    };
    lock(&api.open).insert(work.request_id.clone(), reply);
    let deadline = SystemTime::now() + work.timeout;
    let deadline_ms = deadline.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let trace = uuid::Uuid::new_v4().simple().to_string();
    let response = Response::builder()
        .header("Content-Type", "application/json")
        .header("Lambda-Runtime-Aws-Request-Id", &work.request_id)
        .header("Lambda-Runtime-Deadline-Ms", deadline_ms.to_string())
        .header("Lambda-Runtime-Invoked-Function-Arn", &work.arn)
        .header(
            "Lambda-Runtime-Trace-Id",
            format!("Root=1-{}-{};Parent={};Sampled=0", &trace[..8], &trace[8..], &trace[16..]),
        )
        .body(Body::from(work.payload.clone()));
    let _ = started.send(Instant::now());
    response.unwrap_or_else(|_| answer(StatusCode::INTERNAL_SERVER_ERROR, "InvalidRequestID"))
}

async fn response(State(api): State<Arc<Api>>, Path(request_id): Path<String>, body: Body) -> Response<Body> {
    let Some(reply) = lock(&api.open).remove(&request_id) else {
        return answer(StatusCode::BAD_REQUEST, "InvalidRequestID");
    };
    match to_bytes(body, RESPONSE_LIMIT_BYTES).await {
        Ok(payload) => {
            let _ = reply.send(Reply::Response(payload));
            answer(StatusCode::ACCEPTED, "")
        }
        Err(_) => {
            let _ = reply.send(Reply::TooLarge);
            answer(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge")
        }
    }
}

async fn error(State(api): State<Arc<Api>>, Path(request_id): Path<String>, body: Body) -> Response<Body> {
    let Some(reply) = lock(&api.open).remove(&request_id) else {
        return answer(StatusCode::BAD_REQUEST, "InvalidRequestID");
    };
    let payload = to_bytes(body, RESPONSE_LIMIT_BYTES).await;
    let _ = reply.send(payload.map_or(Reply::TooLarge, Reply::Error));
    answer(StatusCode::ACCEPTED, "")
}

async fn init_error_reported(State(api): State<Arc<Api>>, body: Body) -> Response<Body> {
    let payload = to_bytes(body, RESPONSE_LIMIT_BYTES).await.unwrap_or_default();
    *lock(&api.init_error) = Some(payload);
    answer(StatusCode::ACCEPTED, "")
}

/// `{"status":"OK"}`, or the error object with `error_type`.
fn answer(status: StatusCode, error_type: &str) -> Response<Body> {
    let body = if status.is_success() {
        json!({ "status": "OK" })
    } else {
        json!({ "errorType": error_type, "errorMessage": status.canonical_reason() })
    };
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response
}
