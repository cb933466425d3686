//! What a restore may be asked to do, and the fields that go with it.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    NewDatabase,
    Swap,
    Tables,
    Undo,
    Verify,
    RdsSnapshot,
    RdsPointInTime,
}

impl Mode {
    pub const ALL: [Self; 7] = [
        Self::NewDatabase,
        Self::Swap,
        Self::Tables,
        Self::Undo,
        Self::Verify,
        Self::RdsSnapshot,
        Self::RdsPointInTime,
    ];

    /// The fields it takes, beside those that every mode does.
    pub(super) fn fields(self) -> &'static [&'static str] {
        match self {
            Self::NewDatabase => &[
                "backup",
                "before",
                "source_database",
                "import",
                "tier",
                "target_database",
                "no_owner",
                "copy_as_text",
                "continue_on_error",
            ],
            Self::Swap => &[
                "backup",
                "before",
                "source_database",
                "import",
                "tier",
                "target_database",
                "no_owner",
                "copy_as_text",
                "take_safety_backup",
                "accept_left_out",
                "keep_previous_days",
            ],
            Self::Tables => &[
                "backup",
                "before",
                "source_database",
                "import",
                "tier",
                "target_database",
                "tables",
                "into",
                "no_owner",
                "copy_as_text",
                "continue_on_error",
                "take_safety_backup",
            ],
            Self::Undo => &["target_database", "take_safety_backup"],
            Self::Verify => &["backup", "before", "source_database", "tier", "copy_as_text"],
            Self::RdsSnapshot => {
                &["snapshot", "instance", "instance_class", "subnet_group", "security_groups", "parameter_group"]
            }
            Self::RdsPointInTime => {
                &["moment", "instance", "instance_class", "subnet_group", "security_groups", "parameter_group"]
            }
        }
    }

    /// Writes to the configured server, which has to be there; else the server may be what was lost.
    pub fn writes_to_the_server(self) -> bool {
        !matches!(self, Self::RdsSnapshot | Self::RdsPointInTime)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NewDatabase => "new_database",
            Self::Swap => "swap",
            Self::Tables => "tables",
            Self::Undo => "undo",
            Self::Verify => "verify",
            Self::RdsSnapshot => "rds_snapshot",
            Self::RdsPointInTime => "rds_point_in_time",
        }
    }
}
