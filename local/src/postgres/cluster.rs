//! One running PostgreSQL server with a data directory of its own.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::{Pid, Signal, kill_process};

use super::unprivileged::RunAs;
use super::{Installation, PostgresError, datadir};

const READY_LIMIT: Duration = Duration::from_secs(60);
/// A free port can be taken by another process before the server binds it.
const PORT_ATTEMPTS: usize = 5;

/// All but the characters that RFC 3986 lets stand for themselves anywhere.
const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Nothing here has to survive a power cut; everything else is PostgreSQL's default.
const SETTINGS: [(&str, &str); 5] = [
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("listen_addresses", "127.0.0.1"),
    ("wal_keep_size", "128MB"),
];

#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// `None` takes the newest that has server and client.
    pub major: Option<u16>,
    /// Added to `postgresql.conf`; the last one of a name holds.
    pub settings: Vec<(String, String)>,
    /// Of the superuser `postgres`. Needed over TCP and the socket alike.
    pub password: String,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions { major: None, settings: Vec::new(), password: "holdfast".into() }
    }
}

impl ClusterOptions {
    pub fn major(major: u16) -> Self {
        ClusterOptions { major: Some(major), ..Self::default() }
    }

    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }
}

/// As `pg_ctl stop -m` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Waits for the clients to leave.
    Smart,
    Fast,
    /// Without a checkpoint: the next start recovers.
    Immediate,
}

/// Dropping it stops the server and removes its files; should this process be killed, the kernel stops the server.
pub struct Cluster {
    pub(super) installation: Installation,
    pub(super) run_as: RunAs,
    directory: PathBuf,
    pub(super) password: String,
    port: u16,
    server: Option<Child>,
}

impl Cluster {
    pub async fn start(options: ClusterOptions) -> Result<Cluster, PostgresError> {
        let installation = match options.major {
            Some(major) => Installation::server(major)?,
            None => Installation::find_any()?,
        };
        let mut cluster = blocking(move || Self::prepare(installation, &options)).await?;
        cluster.launch().await?;
        Ok(cluster)
    }

    fn prepare(installation: Installation, options: &ClusterOptions) -> Result<Cluster, PostgresError> {
        let mut cluster = Self::empty(installation, options.password.clone())?;
        datadir::initialise(&cluster.installation, &cluster.run_as, &options.password, &cluster.data_directory())?;
        cluster.add_settings(SETTINGS)?;
        let socket = cluster.directory.display().to_string();
        cluster.add_settings([("unix_socket_directories", socket.as_str())])?;
        cluster.add_settings(options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        Ok(cluster)
    }

    /// A cluster with a directory, but nothing in it.
    pub(super) fn empty(installation: Installation, password: String) -> Result<Cluster, PostgresError> {
        let run_as = RunAs::choose()?;
        let directory = datadir::new_cluster_directory(&run_as)?;
        Ok(Cluster { installation, run_as, directory, password, port: 0, server: None })
    }

    pub fn major(&self) -> u16 {
        self.installation.major
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    /// Where the data files, the Unix socket (one level up) and the log are.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The directory of the Unix socket.
    pub fn socket_directory(&self) -> &Path {
        &self.directory
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("server.log")).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// For the superuser, over TCP.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", &self.password, database)
    }

    pub fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        let encode = |text| utf8_percent_encode(text, &RESERVED).to_string();
        format!("postgres://{}:{}@127.0.0.1:{}/{}", encode(user), encode(password), self.port, encode(database))
    }

    /// A connection as superuser.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client, PostgresError> {
        let connecting = tokio_postgres::connect(&self.url(database), tokio_postgres::NoTls).await;
        let (client, connection) = connecting.map_err(|source| PostgresError::Sql { source })?;
        // An error of the connection also reaches whoever uses the client.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs a script of statements as superuser.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<(), PostgresError> {
        let client = self.connect(database).await?;
        client.batch_execute(sql).await.map_err(|source| PostgresError::Sql { source })
    }

    pub async fn create_database(&self, name: &str) -> Result<(), PostgresError> {
        self.execute("postgres", &format!("create database \"{}\"", name.replace('"', "\"\""))).await
    }

    /// Appends to `postgresql.conf`; takes effect at the next start or reload.
    pub fn add_settings<'a>(
        &mut self,
        settings: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<(), PostgresError> {
        let path = self.data_directory().join("postgresql.conf");
        let mut text = fs::read_to_string(&path).map_err(PostgresError::files("read", &path))?;
        for (name, value) in settings {
            text.push_str(&format!("\n{name} = '{}'", value.replace('\'', "''")));
        }
        fs::write(&path, text + "\n").map_err(PostgresError::files("write", &path))
    }

    /// Replaces `pg_hba.conf`; takes effect at the next start or reload.
    pub fn set_hba(&mut self, text: &str) -> Result<(), PostgresError> {
        let path = self.data_directory().join("pg_hba.conf");
        fs::write(&path, text).map_err(PostgresError::files("write", &path))
    }

    /// Gives the server a certificate and restarts it. TLS is then offered; `set_hba` can demand it.
    pub async fn enable_tls(&mut self, certificate_pem: &str, key_pem: &str) -> Result<(), PostgresError> {
        for (name, pem) in [("server.crt", certificate_pem), ("server.key", key_pem)] {
            let path = self.data_directory().join(name);
            fs::write(&path, pem).map_err(PostgresError::files("write", &path))?;
            let private = fs::Permissions::from_mode(0o600);
            fs::set_permissions(&path, private).map_err(PostgresError::files("protect", &path))?;
            self.run_as.own(&path)?;
        }
        self.add_settings([("ssl", "on")])?;
        self.restart().await
    }

    /// Makes the server read its configuration files again.
    pub fn reload(&self) -> Result<(), PostgresError> {
        self.signal(Signal::HUP)
    }

    /// Starts a server that was stopped or killed, on the port it had.
    pub async fn start_again(&mut self) -> Result<(), PostgresError> {
        self.launch().await
    }

    pub async fn restart(&mut self) -> Result<(), PostgresError> {
        self.stop(StopMode::Fast).await?;
        self.launch().await
    }

    /// Ends the server and waits for it. The data stays until the cluster is dropped.
    pub async fn stop(&mut self, mode: StopMode) -> Result<(), PostgresError> {
        self.signal(match mode {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        })?;
        self.wait_for_exit().await
    }

    /// SIGKILL to the postmaster and all its processes, as when a machine goes away.
    pub async fn kill(&mut self) -> Result<(), PostgresError> {
        let postmaster = self.server.as_ref().ok_or(PostgresError::NotRunning)?.id();
        let backends = children_of(postmaster);
        self.signal(Signal::KILL)?;
        for backend in &backends {
            let _ = kill_process(*backend, Signal::KILL);
        }
        self.wait_for_exit().await?;
        // A start meets the old processes' shared memory until they are really gone.
        let gone = |pid: &Pid| !Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists();
        while !backends.iter().all(gone) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    pub fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(None)))
    }

    fn signal(&self, signal: Signal) -> Result<(), PostgresError> {
        let server = self.server.as_ref().ok_or(PostgresError::NotRunning)?;
        let pid = i32::try_from(server.id()).ok().and_then(Pid::from_raw).ok_or(PostgresError::NotRunning)?;
        kill_process(pid, signal).map_err(|error| PostgresError::Signal { source: error.into() })
    }

    async fn wait_for_exit(&mut self) -> Result<(), PostgresError> {
        let mut server = self.server.take().ok_or(PostgresError::NotRunning)?;
        let waited = blocking(move || Ok(server.wait())).await?;
        waited.map(drop).map_err(|source| PostgresError::Signal { source })
    }

    pub(super) async fn launch(&mut self) -> Result<(), PostgresError> {
        let chosen = self.port != 0;
        for attempt in 1.. {
            if !chosen {
                self.port = free_port()?;
            }
            match self.try_launch().await {
                Err(PostgresError::DidNotStart { log, .. })
                    if !chosen && attempt < PORT_ATTEMPTS && log.contains("could not create any TCP/IP sockets") => {}
                other => return other,
            }
        }
        Ok(())
    }

    async fn try_launch(&mut self) -> Result<(), PostgresError> {
        let log_path = self.directory.join("server.log");
        let log = fs::File::create(&log_path).map_err(PostgresError::files("create", &log_path))?;
        let errors = log.try_clone().map_err(PostgresError::files("create", &log_path))?;
        let program = self.installation.tool("postgres");
        let privileges = self.run_as.setpriv_arguments();
        let privileges: Vec<&str> = privileges.iter().map(String::as_str).collect();
        // SIGQUIT: an immediate shutdown, in which the postmaster takes its children and its shared memory with it.
        let mut command = crate::orphans::bound_to_us(&program, "QUIT", &privileges);
        command.arg("-D").arg(self.data_directory()).args(["-p", &self.port.to_string()]);
        command.env("LC_ALL", "C.UTF-8").current_dir("/").stdin(Stdio::null()).stdout(log).stderr(errors);
        if let Some(library) = self.installation.library_path() {
            command.env("LD_LIBRARY_PATH", library);
        }
        let ran = crate::orphans::on_parent_thread(move || command.spawn()).and_then(|spawned| spawned);
        self.server = Some(ran.map_err(|source| PostgresError::Run { program, source })?);

        let began = Instant::now();
        loop {
            if !self.is_running() {
                self.server = None;
                return Err(PostgresError::DidNotStart { major: self.major(), log: self.log_tail() });
            }
            if self.says_ready() {
                return Ok(());
            }
            if began.elapsed() > READY_LIMIT {
                let (major, seconds) = (self.major(), READY_LIMIT.as_secs());
                return Err(PostgresError::NotReady { major, seconds, log: self.log_tail() });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The eighth line of `postmaster.pid` (PostgreSQL, src/include/utils/pidfile.h), which `pg_ctl` reads too. A standby says
    /// `ready` when it accepts connections.
    fn says_ready(&self) -> bool {
        let text = fs::read_to_string(self.data_directory().join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines();
        // The first line tells a file of ours from one that a killed server left behind.
        let ours = lines.next().and_then(|pid| pid.trim().parse().ok()) == self.server.as_ref().map(Child::id);
        ours && lines.nth(6).is_some_and(|status| status.trim() == "ready")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGQUIT ends it within milliseconds.
        if self.signal(Signal::QUIT).is_ok()
            && let Some(server) = &mut self.server
        {
            let _ = server.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The direct children of a process, from `/proc`.
fn children_of(parent: u32) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // `pid (name) state ppid …`: the name may hold anything, so count from its closing bracket.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        after_name.split_whitespace().nth(1).and_then(|ppid| ppid.parse().ok()) == Some(parent)
    })
    .filter_map(Pid::from_raw)
    .collect()
}

fn free_port() -> Result<u16, PostgresError> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound.map(|address| address.port()).map_err(PostgresError::files("find a port on", "127.0.0.1"))
}

pub(super) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, PostgresError> + Send + 'static,
) -> Result<T, PostgresError> {
    tokio::task::spawn_blocking(job).await.map_err(|_| PostgresError::Interrupted)?
}
