//! Data directories: one `initdb` per installation, then copies; and sweeping away what killed processes left.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::unprivileged::RunAs;
use super::{Installation, PostgresError};

/// A new directory for one cluster. Its name starts with our pid, so that a later process can tell that we are gone.
pub(super) fn new_cluster_directory(run_as: &RunAs) -> Result<PathBuf, PostgresError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let clusters = RunAs::base_directory().join("clusters");
    fs::create_dir_all(&clusters).map_err(PostgresError::files("create", &clusters))?;
    if NEXT.load(Ordering::Relaxed) == 0 {
        sweep(&clusters);
    }
    let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let directory = clusters.join(name);
    // From an earlier process with our pid.
    remove(&directory)?;
    fs::create_dir(&directory).map_err(PostgresError::files("create", &directory))?;
    run_as.own(&directory)?;
    Ok(directory)
}

/// Removes the clusters of processes that no longer run. Their servers have ended with them.
fn sweep(clusters: &Path) {
    let Ok(entries) = fs::read_dir(clusters) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another process may be sweeping too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

pub(super) fn remove(directory: &Path) -> Result<(), PostgresError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(PostgresError::Files { action: "remove", path: directory.into(), source: error })
        }
        _ => Ok(()),
    }
}

/// Fills `data` as `initdb` would, by copying the installation's template, which the first call makes.
pub(super) fn initialise(
    installation: &Installation,
    run_as: &RunAs,
    password: &str,
    data: &Path,
) -> Result<(), PostgresError> {
    static MAKING: Mutex<()> = Mutex::new(());
    let template = {
        // Tests start clusters side by side; other processes are kept out by the rename in `make_template`.
        let _making = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        make_template(installation, run_as, password)?
    };
    copy(&template, data, run_as, &|_| false)
}

fn make_template(installation: &Installation, run_as: &RunAs, password: &str) -> Result<PathBuf, PostgresError> {
    let templates = RunAs::base_directory().join("templates");
    let binary = installation.tool("postgres");
    let built =
        fs::metadata(&binary).and_then(|meta| meta.modified()).map_err(PostgresError::files("read", &binary))?;
    // A template outlives its process, and the installation may change: its name tells what it was made from.
    let mut identity = std::hash::DefaultHasher::new();
    std::hash::Hash::hash(&(&binary, built, password), &mut identity);
    let name = format!("{}-{:016x}", installation.major, std::hash::Hasher::finish(&identity));
    let template = templates.join(&name);
    if template.exists() {
        return Ok(template);
    }

    let draft = templates.join(format!("draft-{name}-{}", std::process::id()));
    fs::create_dir_all(&draft).map_err(PostgresError::files("create", &draft))?;
    run_as.own(&draft)?;
    let password_file = draft.join("password");
    fs::write(&password_file, password).map_err(PostgresError::files("write", &password_file))?;
    run_as.own(&password_file)?;

    let data = draft.join("data");
    let mut initdb = Command::new("setpriv");
    initdb.args(run_as.setpriv_arguments()).arg("--").arg(installation.tool("initdb"));
    initdb.arg("--pgdata").arg(&data).arg("--pwfile").arg(&password_file);
    initdb.args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]);
    initdb.env("LC_ALL", "C.UTF-8").current_dir("/");
    if let Some(library) = installation.library_path() {
        initdb.env("LD_LIBRARY_PATH", library);
    }
    let program = installation.tool("initdb");
    let output = initdb.output().map_err(|source| PostgresError::Run { program: program.clone(), source })?;
    if !output.status.success() {
        let _ = fs::remove_dir_all(&draft);
        let output = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        return Err(PostgresError::Failed { program, output });
    }
    match fs::rename(&data, &template) {
        // Another process was faster: its template is as good.
        Err(_) if template.exists() => {}
        renamed => renamed.map_err(PostgresError::files("create", &template))?,
    }
    let _ = fs::remove_dir_all(&draft);
    Ok(template)
}

/// Copies a tree for the server's user. Files that vanish meanwhile are passed over, as a backup of a running server must.
pub(super) fn copy(
    from: &Path,
    to: &Path,
    run_as: &RunAs,
    leave_out: &dyn Fn(&Path) -> bool,
) -> Result<(), PostgresError> {
    fs::create_dir(to).map_err(PostgresError::files("create", to))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).map_err(PostgresError::files("protect", to))?;
    run_as.own(to)?;
    for entry in fs::read_dir(from).map_err(PostgresError::files("read", from))? {
        let source = entry.map_err(PostgresError::files("read", from))?.path();
        let Some(name) = source.file_name() else { continue };
        let target = to.join(name);
        if leave_out(&source) {
            continue;
        }
        if source.is_dir() {
            copy(&source, &target, run_as, leave_out)?;
            continue;
        }
        match fs::copy(&source, &target) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            copied => {
                copied.map_err(PostgresError::files("copy", &source))?;
                run_as.own(&target)?;
            }
        }
    }
    Ok(())
}
