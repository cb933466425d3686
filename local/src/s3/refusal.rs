//! Error codes of S3 that the `s3s` crate has no name for.

use std::fmt::Arguments;

use http::StatusCode;
use s3s::{S3Error, S3ErrorCode};

pub(super) fn refuse(status: u16, code: &str, message: Arguments<'_>) -> S3Error {
    let code = S3ErrorCode::from_bytes(code.as_bytes()).unwrap_or(S3ErrorCode::InternalError);
    let mut error = S3Error::with_message(code, message.to_string());
    error.set_status_code(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    error
}
