//! One synchronous invocation over HTTP, as `aws lambda invoke` sends it.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    #[error("the request could not be made")]
    Request {
        #[from]
        source: http::Error,
    },
    #[error("the request could not be sent")]
    Send {
        #[from]
        source: hyper_util::client::legacy::Error,
    },
    #[error("the response broke off")]
    Body {
        #[from]
        source: hyper::Error,
    },
    #[error("the endpoint answered {status}: {body}")]
    Refused { status: u16, body: String },
    #[error("the response is not JSON")]
    Json {
        #[from]
        source: serde_json::Error,
    },
}

pub struct Answer {
    pub payload: Value,
    /// `X-Amz-Function-Error` was there.
    pub failed: bool,
}

pub async fn invoke(endpoint: &str, function: &str, payload: &str) -> Result<Answer, InvokeError> {
    let request = Request::post(format!("{endpoint}/2015-03-31/functions/{function}/invocations"))
        .header("X-Amz-Invocation-Type", "RequestResponse")
        .body(Full::new(Bytes::from(payload.to_owned())))?;
    let response = Client::builder(TokioExecutor::new()).build_http().request(request).await?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    if !parts.status.is_success() {
        let body = String::from_utf8_lossy(&body).into_owned();
        return Err(InvokeError::Refused { status: parts.status.as_u16(), body });
    }
    let failed = parts.headers.contains_key("x-amz-function-error");
    Ok(Answer { payload: serde_json::from_slice(&body)?, failed })
}
