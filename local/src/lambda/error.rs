//! What can go wrong before a function runs, and how AWS words it.

use std::path::PathBuf;

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use serde_json::json;

#[derive(Debug, thiserror::Error)]
pub enum LambdaError {
    #[error("cannot listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start {binary}")]
    Spawn {
        binary: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("function not found: {arn}")]
    NotFound { arn: String },
    #[error("rate exceeded: all {limit} instances of {function} are busy")]
    TooManyRequests { function: String, limit: u32 },
    #[error("request of {size_bytes} bytes is over the limit of {limit_bytes}")]
    RequestTooLarge { size_bytes: usize, limit_bytes: usize },
    #[error("request body is not JSON")]
    InvalidContent {
        #[source]
        source: serde_json::Error,
    },
    #[error("invocation type {given} is not one of RequestResponse, Event, DryRun")]
    InvalidInvocationType { given: String },
}

impl LambdaError {
    /// Status, exception name and message as in the API reference of `Invoke`.
    pub(super) fn response(&self) -> Response<Body> {
        let (status, exception, message) = match self {
            LambdaError::NotFound { arn } => (404, "ResourceNotFoundException", format!("Function not found: {arn}")),
            LambdaError::TooManyRequests { .. } => (429, "TooManyRequestsException", "Rate Exceeded.".into()),
            LambdaError::RequestTooLarge { limit_bytes, .. } => (
                413,
                "RequestTooLargeException",
                format!("Request must be smaller than {limit_bytes} bytes for the InvokeFunction operation"),
            ),
            LambdaError::InvalidContent { source } => (
                400,
                "InvalidRequestContentException",
                format!("Could not parse request body into json: Could not parse payload into json: {source}"),
            ),
            LambdaError::InvalidInvocationType { .. } => (400, "InvalidParameterValueException", self.to_string()),
            LambdaError::Listen { .. } | LambdaError::Spawn { .. } => (500, "ServiceException", self.to_string()),
        };
        let kind = if status < 500 { "User" } else { "Service" };
        let mut body = json!({ "Type": kind, "Message": message });
        if let LambdaError::TooManyRequests { .. } = self {
            body["Reason"] = json!("ReservedFunctionConcurrentInvocationLimitExceeded");
        }
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert("x-amzn-errortype", header::HeaderValue::from_static(exception));
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }
}
