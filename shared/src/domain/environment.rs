//! The deployment stage a backup belongs to (`production`, `staging`, …).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of an environment: 1–32 of `a-z 0-9 -`, starting with a letter; it is part of object keys and metric dimensions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Environment(String);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not an environment name (1 to 32 of a-z, 0-9 and -, starting with a letter)")]
pub struct EnvironmentError {
    pub text: String,
}

impl Environment {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Environment {
    type Err = EnvironmentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = text.len() <= 32
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if valid { Ok(Self(text.to_owned())) } else { Err(EnvironmentError { text: text.to_owned() }) }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Environment> for String {
    fn from(environment: Environment) -> Self {
        environment.0
    }
}

impl TryFrom<String> for Environment {
    type Error = EnvironmentError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_plain_names_only() {
        for good in ["production", "staging", "dev-2"] {
            assert_eq!(good.parse::<Environment>().unwrap().to_string(), good);
        }
        for bad in ["", "Production", "a/b", "..", "1st", "a b", &"x".repeat(33)] {
            assert!(bad.parse::<Environment>().is_err(), "{bad}");
        }
    }
}
