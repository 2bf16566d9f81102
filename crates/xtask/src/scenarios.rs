//! The tests that need lab hosts. Each runs in a process and a lab of its own; one file a subject.

mod audit;
mod bad_input;
mod boots;
mod calls;
mod case;
mod disk;
mod faults;
mod lifecycle;
mod net;
mod protect;
mod protect_disk;
mod protect_mode;
mod protect_refused;
pub(crate) mod relays;
mod sipstone;
mod sizes;
pub(crate) mod table;

use crate::{
    assets::{Assets, Image},
    pair,
};
use anyhow::{Context as _, Result, bail};
use case::Case;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

/// One test.
pub(crate) struct Scenario {
    /// Its name: subject, slash, what.
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) what: &'static str,
    /// How long it may take, without the lab's own start.
    pub(crate) limit: Duration,
    /// How many lab hosts it needs. Those that need more than one run one at a time: a pair watches the time.
    pub(crate) hosts: usize,
    /// Memory of a lab host in MiB.
    host_mib: u32,
    /// The guests that it boots.
    images: &'static [Image],
    /// Whether it runs the whole-memory audit.
    audit: bool,
    /// Whether it has softphones.
    softphone: bool,
    /// Whether it runs only under `--full`, or by its name.
    pub(crate) only_full: bool,
    run: Run,
}

/// What a scenario does.
#[derive(Clone, Copy)]
enum Run {
    /// In a lab that was started for it.
    Inside(fn(&Case) -> Result<()>),
    /// Outside of any lab, with the list of files that were prepared and the folder for logs.
    Outside(fn(&Path, &Path) -> Result<()>),
}

/// What a lab that is held says once it is up.
const HOLDING: &str = "holding";

impl Scenario {
    /// A scenario with one host of the usual size, done within four minutes.
    const fn new(
        name: &'static str,
        what: &'static str,
        images: &'static [Image],
        run: fn(&Case) -> Result<()>,
    ) -> Self {
        Self {
            name,
            what,
            limit: Duration::from_mins(8),
            hosts: 1,
            host_mib: 2048,
            images,
            audit: false,
            softphone: false,
            only_full: false,
            run: Run::Inside(run),
        }
    }

    /// A scenario with two hosts that protect a machine, done within ten minutes.
    const fn pair(
        name: &'static str,
        what: &'static str,
        images: &'static [Image],
        run: fn(&Case) -> Result<()>,
    ) -> Self {
        Self {
            hosts: 2,
            host_mib: pair::HOST_MIB,
            limit: Duration::from_mins(10),
            ..Self::new(name, what, images, run)
        }
    }

    /// A scenario that looks at a lab from outside.
    const fn outside(
        name: &'static str,
        what: &'static str,
        run: fn(&Path, &Path) -> Result<()>,
    ) -> Self {
        Self {
            name,
            what,
            limit: Duration::from_mins(5),
            hosts: 1,
            host_mib: 2048,
            images: &[],
            audit: false,
            softphone: false,
            only_full: false,
            run: Run::Outside(run),
        }
    }

    const fn host_mib(mut self, mib: u32) -> Self {
        self.host_mib = mib;
        self
    }

    const fn with_audit(mut self) -> Self {
        self.audit = true;
        self
    }

    const fn with_softphone(mut self) -> Self {
        self.softphone = true;
        self
    }

    const fn only_full(mut self) -> Self {
        self.only_full = true;
        self
    }

    const fn minutes(mut self, minutes: u64) -> Self {
        self.limit = Duration::from_mins(minutes);
        self
    }
}

/// All scenarios.
pub(crate) fn all() -> Vec<&'static Scenario> {
    [
        boots::ALL,
        sizes::ALL,
        lifecycle::ALL,
        disk::ALL,
        net::ALL,
        calls::ALL,
        bad_input::ALL,
        audit::ALL,
        faults::ALL,
        protect::ALL,
        protect_disk::ALL,
        protect_mode::ALL,
        protect_refused::ALL,
        sipstone::ALL,
        relays::ALL,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The guests that these scenarios need, each once.
pub(crate) fn images(scenarios: &[&Scenario]) -> Vec<Image> {
    let mut images = Vec::new();
    for image in scenarios.iter().flat_map(|scenario| scenario.images) {
        if !images.contains(image) {
            images.push(*image);
        }
    }
    images
}

/// Whether any of these scenarios needs the audit program.
pub(crate) fn need_audit(scenarios: &[&Scenario]) -> bool {
    scenarios.iter().any(|scenario| scenario.audit)
}

/// Whether any of these scenarios has softphones.
pub(crate) fn need_softphone(scenarios: &[&Scenario]) -> bool {
    scenarios.iter().any(|scenario| scenario.softphone)
}

/// Run one scenario in a lab of its own (this program runs itself so)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Its name
    name: String,
    /// The list of files that were prepared
    #[arg(long)]
    assets: PathBuf,
    /// Where consoles and logs are kept
    #[arg(long)]
    logs: PathBuf,
    /// Only start the lab, say so, and stay until killed
    #[arg(long)]
    hold: bool,
}

/// Runs one scenario.
///
/// # Errors
/// It failed; consoles and logs are kept.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let scenario = all()
        .into_iter()
        .find(|scenario| scenario.name == args.name)
        .with_context(|| {
            format!(
                "there is no scenario {:?}; see `cargo xtask test --list`",
                args.name
            )
        })?;
    match scenario.run {
        Run::Outside(run) => run(&args.assets, &args.logs)?,
        Run::Inside(run) => {
            let assets = lab::inside(|| Assets::read(&args.assets))?;
            let case = Arc::new(Case::start(
                assets,
                scenario.hosts,
                scenario.host_mib,
                args.logs.clone(),
            )?);
            if args.hold {
                println!("{HOLDING}");
                loop {
                    thread::park();
                }
            }
            within(scenario.limit, &case, run).or_else(|error| {
                case.keep_logs()?;
                Err(error)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a scenario's work on a thread of its own. If it is not done in time it is left behind: this process ends soon, and
/// the lab with it.
///
/// # Errors
/// Those of the work, or that it is not done in time.
fn within(limit: Duration, case: &Arc<Case>, run: fn(&Case) -> Result<()>) -> Result<()> {
    let case = Arc::clone(case);
    let (done, ended) = mpsc::channel();
    thread::Builder::new()
        .name("scenario".into())
        .spawn(move || done.send(run(&case)))?;
    match ended.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => bail!("not done within {} s", limit.as_secs()),
        Err(RecvTimeoutError::Disconnected) => bail!("the scenario panicked"),
    }
}

#[cfg(test)]
mod tests {
    use super::all;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_fit_for_folders() {
        let names: Vec<&str> = all().iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
        for name in names {
            assert!(
                name.chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-/".contains(c)),
                "{name}"
            );
        }
    }
}
