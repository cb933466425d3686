//! An error as it leaves a function: a stable code, what happened, what the operator can do, and all its causes.

use std::error::Error;
use std::fmt;

use lambda_runtime::Diagnostic;

/// What a function fails with.
///
/// Displayed as `message: cause: cause (hint)`. The code is the `errorType` of the Lambda response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Kebab-case and stable: alarms and scripts match on it. docs/errors.md lists all.
    pub code: &'static str,
    pub message: String,
    pub hint: Option<String>,
}

impl Fault {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Wraps an error with its whole source chain.
    pub fn from_error(code: &'static str, error: &(dyn Error + 'static)) -> Self {
        Self::new(code, chain(error))
    }

    /// What the operator can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Says in front of the message what it was about.
    #[must_use]
    pub fn with_context(mut self, context: &str) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }
}

/// `error: cause: cause`; a cause whose text its parent already shows is not repeated.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, " ({hint})"))
    }
}

impl Error for Fault {}

impl From<Fault> for Diagnostic {
    fn from(fault: Fault) -> Self {
        Self { error_type: fault.code.to_owned(), error_message: fault.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::num::ParseIntError);

    #[test]
    fn the_whole_chain_is_told_once() {
        let error = Outer("x".parse::<i32>().unwrap_err());
        let fault = Fault::from_error("some-code", &error).hint("set it to a number");
        assert_eq!(fault.to_string(), "outer: invalid digit found in string (set it to a number)");
        assert_eq!(Diagnostic::from(fault).error_type, "some-code");
    }
}
