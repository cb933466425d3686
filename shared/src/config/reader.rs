//! Reads settings through a lookup, collecting everything that is wrong.

use std::fmt;
use std::str::FromStr;

use crate::config::Setting;
use crate::domain::TablePattern;
use crate::fault::Fault;

/// All that is wrong with a configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.problems.join("; "))
    }
}

impl From<ConfigError> for Fault {
    fn from(error: ConfigError) -> Self {
        Self::from_error("configuration", &error).hint("docs/configuration.md lists every setting")
    }
}

/// Reads settings through a lookup, collecting problems.
pub(super) struct Reader<'a> {
    pub(super) lookup: &'a dyn Fn(&str) -> Option<String>,
    pub(super) problems: Vec<String>,
}

impl Reader<'_> {
    pub(super) fn optional(&self, setting: Setting) -> Option<String> {
        let own = (self.lookup)(setting.name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        own.or_else(|| Some(setting.default.to_owned()).filter(|text| !text.is_empty()))
    }

    pub(super) fn required(&mut self, setting: Setting) -> String {
        self.optional(setting).unwrap_or_else(|| {
            self.problems.push(format!("{} is not set", setting.name));
            String::new()
        })
    }

    pub(super) fn parse<T: FromStr<Err: fmt::Display>>(&mut self, setting: Setting, text: &str) -> Option<T> {
        text.parse().map_err(|error| self.problems.push(format!("{}: {error}", setting.name))).ok()
    }

    pub(super) fn parsed<T: FromStr<Err: fmt::Display>>(&mut self, setting: Setting) -> Option<T> {
        let text = self.optional(setting)?;
        self.parse(setting, &text)
    }

    pub(super) fn number(&mut self, setting: Setting, range: std::ops::RangeInclusive<u64>) -> u64 {
        let value = self.parsed(setting).unwrap_or(*range.start());
        if !range.contains(&value) {
            let (low, high) = range.into_inner();
            self.problems.push(format!("{}: {value} is not between {low} and {high}", setting.name));
        }
        value
    }

    pub(super) fn flag(&mut self, setting: Setting) -> bool {
        match self.optional(setting).as_deref() {
            Some("true" | "1") => true,
            None | Some("false" | "0") => false,
            Some(other) => {
                self.problems.push(format!("{}: {other:?} is not true or false", setting.name));
                false
            }
        }
    }

    pub(super) fn patterns(&mut self, setting: Setting) -> Vec<TablePattern> {
        let text = self.optional(setting).unwrap_or_default();
        text.split(',').map(str::trim).filter(|p| !p.is_empty()).filter_map(|p| self.parse(setting, p)).collect()
    }
}
