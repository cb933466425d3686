//! Every environment variable, declared once: name, meaning, default, parser. One module a function, and what they share.
//!
//! An empty variable counts as not set. A bad configuration reports all its problems at once, at cold start.

pub mod common;
pub mod export;
mod reader;
pub mod restore;
pub mod retention;
pub mod snapshot_export;

pub use common::{DatabaseAuth, DatabaseConfig, NotifyConfig, ObjectChecksum, StoreConfig, log_level};
pub use export::ExportConfig;
pub use reader::ConfigError;
pub use restore::RestoreConfig;
pub use retention::RetentionConfig;
pub use snapshot_export::SnapshotExportConfig;

/// One environment variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    pub name: &'static str,
    /// What stands in the template where nothing else is wanted; empty means not set.
    pub default: &'static str,
    pub meaning: &'static str,
}

/// Declares settings as constants, and a list of them.
macro_rules! settings {
    ($list:ident { $($constant:ident = $name:literal, $default:literal, $meaning:literal;)* }) => {
        $(pub(super) const $constant: $crate::config::Setting =
            $crate::config::Setting { name: $name, default: $default, meaning: $meaning };)*
        /// In the order of docs/configuration.md.
        pub const $list: &[$crate::config::Setting] = &[$($constant),*];
    };
}
pub(crate) use settings;

/// A function and the lists of settings it reads.
pub type FunctionSettings = (&'static str, &'static [&'static [Setting]]);

/// Every function's settings; docs/configuration.md and the templates are held against it.
pub const FUNCTIONS: &[FunctionSettings] = &[
    ("scheduled-export", &[common::COMMON_SETTINGS, common::DATABASE_SETTINGS, export::EXPORT_SETTINGS]),
    ("restore-trigger", &[common::COMMON_SETTINGS, common::DATABASE_SETTINGS, restore::RESTORE_SETTINGS]),
    (
        "retention",
        &[
            common::COMMON_SETTINGS,
            common::DATABASE_SETTINGS,
            retention::RETENTION_SETTINGS,
            snapshot_export::SNAPSHOT_SETTINGS,
        ],
    ),
    (
        "snapshot-export",
        &[common::COMMON_SETTINGS, snapshot_export::SNAPSHOT_SETTINGS, snapshot_export::SNAPSHOT_EXPORT_SETTINGS],
    ),
];
