//! The note (a comment) on a database that a swap or an undo has put aside: restores and retention go by it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::BackupId;

/// Written in the transaction that renames the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAside {
    #[serde(rename = "holdfast")]
    pub by: Exchange,
    /// What came in its place; `None` where that was no backup of this project.
    pub by_backup: Option<BackupId>,
    pub at: Timestamp,
    /// When retention may drop it; `None`: when somebody does it by hand.
    pub keep_until: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exchange {
    /// By a swap.
    Replaced,
    /// By the undo of one.
    Undone,
}

impl PutAside {
    /// `None` for every other comment.
    pub fn parse(comment: &str) -> Option<Self> {
        serde_json::from_str(comment).ok()
    }

    pub fn render(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Exchange {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Undone => "undone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written() {
        let comment =
            r#"{"holdfast":"replaced","by_backup":"20250601-020000","at":"2025-06-01T03:00:00Z","keep_until":null}"#;
        let note = PutAside::parse(comment).unwrap();
        assert_eq!((note.by, note.render()), (Exchange::Replaced, comment.to_owned()));
        for other in ["", "ours", "{}", &comment.replace("replaced", "unfinished"), &comment.replace("at", "since")] {
            assert_eq!(PutAside::parse(other), None, "{other}");
        }
    }
}
