//! Running PostgreSQL's server programs as somebody other than root, which they insist on.

use std::path::{Path, PathBuf};

use super::PostgresError;

/// Who runs the server programs, and how to become that user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RunAs {
    /// We are not root ourselves.
    Ourselves,
    Other {
        uid: u32,
        gid: u32,
        reads_everything: bool,
    },
}

impl RunAs {
    pub(super) fn choose() -> Result<Self, PostgresError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(RunAs::Ourselves);
        }
        let users = std::fs::read_to_string("/etc/passwd").map_err(PostgresError::files("read", "/etc/passwd"))?;
        let (uid, gid) = ["postgres", "nobody"]
            .iter()
            .find_map(|name| find_user(&users, name))
            .ok_or(PostgresError::NoUnprivilegedUser)?;
        Ok(RunAs::Other { uid, gid, reads_everything: may_read_everything() })
    }

    /// Arguments for `setpriv`. The user keeps one right of root's, to read: a checkout or a temporary directory may lie below a
    /// directory that only root can enter.
    pub(super) fn setpriv_arguments(&self) -> Vec<String> {
        let RunAs::Other { uid, gid, reads_everything } = self else { return Vec::new() };
        let mut arguments = vec![format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into()];
        if *reads_everything {
            arguments.push("--inh-caps=+dac_read_search".into());
            arguments.push("--ambient-caps=+dac_read_search".into());
        }
        arguments
    }

    /// Gives one file or directory to the user.
    pub(super) fn own(&self, path: &Path) -> Result<(), PostgresError> {
        match self {
            RunAs::Ourselves => Ok(()),
            RunAs::Other { uid, gid, .. } => std::os::unix::fs::lchown(path, Some(*uid), Some(*gid))
                .map_err(PostgresError::files("change the owner of", path)),
        }
    }

    /// Distinguishes what different users keep in a shared temporary directory.
    pub(super) fn base_directory() -> PathBuf {
        std::env::temp_dir().join(format!("holdfast-local-{}", rustix::process::geteuid().as_raw()))
    }
}

fn find_user(passwd: &str, name: &str) -> Option<(u32, u32)> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
    })
}

/// Whether our bounding and permitted sets hold CAP_DAC_READ_SEARCH (bit 2): a container may have taken it from root.
fn may_read_everything() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ["CapPrm:", "CapBnd:"].iter().all(|set| {
        let line = status.lines().find_map(|line| line.strip_prefix(set));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).is_some_and(|bits| bits & 0b100 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::find_user;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgresx:x:7:8::/:/bin/sh\npostgres:x:101:104::/:/bin/sh\n";
        assert_eq!(find_user(passwd, "postgres"), Some((101, 104)));
        assert_eq!(find_user(passwd, "nobody"), None);
    }
}
