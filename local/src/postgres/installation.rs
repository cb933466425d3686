//! Where PostgreSQL's programs are on this machine. Servers and clients of one major may come from different places.
//!
//! Looked at in this order: `HOLDFAST_PG_{major}_BIN`, `/usr/lib/postgresql/{major}/bin` (Debian, Ubuntu), and
//! `.tools/postgresql/{major}/{server,client}/bin` of the project, which `scripts/setup-tests.sh` fills.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::PostgresError;

pub const SERVER_TOOLS: [&str; 3] = ["postgres", "initdb", "pg_ctl"];
pub const CLIENT_TOOLS: [&str; 3] = ["pg_dump", "pg_restore", "psql"];

/// The majors that are looked for.
const MAJORS: std::ops::RangeInclusive<u16> = 10..=25;

/// One directory of PostgreSQL programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    pub major: u16,
    bin: PathBuf,
    tools: BTreeSet<&'static str>,
}

impl Installation {
    /// Every installation of every major, in the order in which they are preferred, majors ascending.
    pub fn all() -> Vec<Installation> {
        MAJORS.flat_map(Self::of_major).collect()
    }

    /// The preferred installation of a major, whatever it holds.
    pub fn find(major: u16) -> Result<Installation, PostgresError> {
        Self::of_major(major).into_iter().next().ok_or_else(|| missing(format!("{major}"), candidates(major)))
    }

    /// The newest installation that has both server and client, or else the newest server.
    pub fn find_any() -> Result<Installation, PostgresError> {
        let servers: Vec<_> = Self::all().into_iter().filter(Installation::has_server).collect();
        let complete = servers.iter().rev().find(|installation| installation.has_client());
        let found = complete.or(servers.last()).cloned();
        found.ok_or_else(|| missing("server", vec!["/usr/lib/postgresql".into(), ".tools/postgresql".into()]))
    }

    /// One that can run a server of this major.
    pub fn server(major: u16) -> Result<Installation, PostgresError> {
        let mut found = Self::of_major(major).into_iter().filter(Installation::has_server);
        found.next().ok_or_else(|| missing(format!("{major} server"), candidates(major)))
    }

    /// The majors of which a server can be started here, ascending.
    pub fn server_majors() -> Vec<u16> {
        let majors: BTreeSet<u16> =
            Self::all().iter().filter(|found| found.has_server()).map(|found| found.major).collect();
        majors.into_iter().collect()
    }

    /// One with `pg_dump`, `pg_restore` and `psql` of exactly this major.
    pub fn client(major: u16) -> Result<Installation, PostgresError> {
        let mut found = Self::of_major(major).into_iter().filter(Installation::has_client);
        found.next().ok_or_else(|| missing(format!("{major} client"), candidates(major)))
    }

    /// The oldest client that is not older than `major`: what can dump and restore a server of that major.
    pub fn client_at_least(major: u16) -> Result<Installation, PostgresError> {
        let mut found = (major..=*MAJORS.end()).filter_map(|major| Self::client(major).ok());
        found.next().ok_or_else(|| missing(format!("client of major {major} or later"), candidates(major)))
    }

    /// For a server of unknown version.
    pub fn newest_client() -> Result<Installation, PostgresError> {
        let newest = MAJORS.rev().find_map(|major| Self::client(major).ok());
        newest.ok_or_else(|| missing("client", vec!["/usr/lib/postgresql".into(), ".tools/postgresql".into()]))
    }

    pub fn has_server(&self) -> bool {
        SERVER_TOOLS.iter().all(|tool| self.tools.contains(tool))
    }

    pub fn has_client(&self) -> bool {
        CLIENT_TOOLS.iter().all(|tool| self.tools.contains(tool))
    }

    /// The names among `SERVER_TOOLS` and `CLIENT_TOOLS` that are here.
    pub fn tools(&self) -> impl Iterator<Item = &'static str> {
        self.tools.iter().copied()
    }

    /// The path of a program here, whether or not it exists.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A command for one of the programs.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.tool(name));
        if let Some(library) = self.library_path() {
            command.env("LD_LIBRARY_PATH", library);
        }
        command
    }

    /// Where a relocated installation keeps libraries that its libraries need in turn: a run path does not reach those.
    pub(super) fn library_path(&self) -> Option<PathBuf> {
        let library = self.bin.parent()?.join("lib");
        (!self.bin.starts_with("/usr") && library.is_dir()).then_some(library)
    }

    fn of_major(major: u16) -> Vec<Installation> {
        candidates(major).into_iter().filter_map(|bin| Self::at(major, &bin)).collect()
    }

    fn at(major: u16, bin: &Path) -> Option<Installation> {
        let bin = bin.canonicalize().ok()?;
        let known = SERVER_TOOLS.iter().chain(&CLIENT_TOOLS);
        let tools: BTreeSet<_> = known.filter(|tool| bin.join(tool).is_file()).copied().collect();
        (!tools.is_empty()).then_some(Installation { major, bin, tools })
    }
}

fn missing(what: impl Into<String>, looked_in: Vec<PathBuf>) -> PostgresError {
    PostgresError::NotInstalled { what: what.into(), looked_in }
}

fn candidates(major: u16) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::env::var_os(format!("HOLDFAST_PG_{major}_BIN")).map(PathBuf::from).into_iter().collect();
    found.push(format!("/usr/lib/postgresql/{major}/bin").into());
    if let Some(tools) = project_tools() {
        for part in ["server", "client"] {
            found.push(tools.join(format!("postgresql/{major}/{part}/bin")));
        }
    }
    found
}

/// `.tools` in the nearest directory above the working directory, or above this program.
fn project_tools() -> Option<PathBuf> {
    let starts = [std::env::current_dir().ok(), std::env::current_exe().ok()];
    let above = |start: &Path| start.ancestors().map(|folder| folder.join(".tools")).find(|tools| tools.is_dir());
    starts.iter().flatten().find_map(|start| above(start))
}
