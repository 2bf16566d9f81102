//! A Debian suite's archive, read with apt's own resolver and verification under a configuration of our own, so that
//! neither the computer's package lists nor its installed packages play a part, and no root is needed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::cache::{self, Digest, Lock};
use crate::progress::Progress;
use crate::run;
use crate::suite::Suite;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
const DEFAULT_SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";
/// Package lists older than this are updated, if the archive can be reached.
const FRESH: Duration = Duration::from_hours(24);

/// A package that apt has chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// As apt names it in its archive directory: `name_version_arch.deb`, with `:` as `%3a`.
    file: String,
    /// `SHA256:…`, from the signed lists.
    pub(crate) hash: String,
}

/// The archive of one suite with its security and point-release updates.
#[derive(Debug)]
pub(crate) struct Archive {
    suite: Suite,
    directory: PathBuf,
}

impl Archive {
    /// Makes the private apt configuration and updates the package lists where they are missing or old.
    pub(crate) fn open(suite: Suite, progress: &Progress) -> Result<Self> {
        let directory = cache::cache_dir().join("apt").join(suite.name());
        let archive = Self { suite, directory };
        let _lock = archive.lock()?;
        let stamp = archive.directory.join("updated");
        // Which mirrors this computer uses is asked of apt, which takes a moment: not at every call.
        if age(&stamp).is_some_and(|age| age < FRESH) && fs::read_to_string(&stamp)? == wishes() {
            return Ok(archive);
        }
        archive.configure()?;
        let step = progress.step(format!("updating the package lists of {suite}"));
        match run::quiet(
            archive.apt_get().arg("update"),
            &format!("apt-get update for {suite}"),
        ) {
            Ok(()) => {
                archive.write("updated", &wishes())?;
                step.done(format!("package lists of {suite}"));
            }
            // Lists that are a few days old still serve, for example on a train.
            Err(e) if stamp.exists() && fs::read_to_string(&stamp)? == wishes() => {
                drop(step);
                progress.note(format!(
                    "using package lists of {suite} that may be old: {e}"
                ));
            }
            Err(e) => {
                drop(step);
                return Err(e.context(format!("cannot fetch the package lists of {suite}")));
            }
        }
        Ok(archive)
    }

    /// The packages `names` and all that they depend on (not what they recommend), sorted by name, with nothing taken
    /// as installed.
    pub(crate) fn resolve(&self, names: &[&str]) -> Result<Vec<Package>> {
        let _lock = self.lock()?;
        let mut digest = Digest::new("resolved 3");
        digest.add(self.lists()?);
        for name in names {
            digest.add(name);
        }
        let known = self
            .directory
            .join(format!("resolved-{}.json", digest.short()));
        if let Some(packages) = fs::read(&known)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        {
            return Ok(packages);
        }
        let mut apt = self.apt_get();
        apt.args(["-qq", "--print-uris", "-o", "Acquire::ForceHash=SHA256"]);
        // apt leaves out of its list what it has downloaded before: here it is to find nothing.
        let nothing = self.directory.join("none");
        cache::create_dir(&nothing.join("partial"))?;
        let mut archives = OsString::from("Dir::Cache::archives=");
        archives.push(&nothing);
        apt.arg("-o").arg(archives).arg("install").args(names);
        let text = run::text(
            &mut apt,
            &format!("resolving {} in {}", names.join(" "), self.suite),
        )?;
        let mut packages = text
            .lines()
            .map(parse_uri_line)
            .collect::<Result<Vec<_>>>()?;
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        self.write(
            &format!("resolved-{}.json", digest.short()),
            &serde_json::to_string_pretty(&packages)?,
        )?;
        Ok(packages)
    }

    /// Downloads `packages`, verified against the signed lists, and gives the files in the same order.
    pub(crate) fn download(&self, packages: &[Package]) -> Result<Vec<PathBuf>> {
        let _lock = self.lock()?;
        let archives = self.directory.join("archives");
        cache::create_dir(&archives)?;
        let missing: Vec<_> = packages
            .iter()
            .filter(|p| !archives.join(&p.file).exists())
            .collect();
        if !missing.is_empty() {
            // apt writes under the final names: what an interrupted download leaves must not lie with the whole ones.
            let unfinished = archives.join("unfinished");
            cache::remove_tree(&unfinished)?;
            cache::create_dir(&unfinished)?;
            let mut apt = self.apt_get();
            apt.current_dir(&unfinished).arg("download");
            apt.args(missing.iter().map(|p| format!("{}={}", p.name, p.version)));
            run::quiet(&mut apt, &format!("downloading packages of {}", self.suite))?;
            for package in missing {
                let (from, to) = (unfinished.join(&package.file), archives.join(&package.file));
                fs::rename(&from, &to)
                    .with_context(|| format!("apt-get download left no {}", from.display()))?;
            }
        }
        Ok(packages.iter().map(|p| archives.join(&p.file)).collect())
    }

    fn lock(&self) -> Result<Lock> {
        Lock::take(&cache::cache_dir(), &format!("apt-{}", self.suite))
    }

    fn apt_get(&self) -> Command {
        let mut apt = Command::new("apt-get");
        apt.env("APT_CONFIG", self.directory.join("apt.conf"))
            .stdin(Stdio::null());
        apt.args(["-q", "--yes"]);
        apt
    }

    /// The signed digests of the lists: what a resolution depends on.
    fn lists(&self) -> Result<Vec<u8>> {
        let directory = self.directory.join("lists");
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?;
        let mut paths: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        paths.retain(|p| p.to_string_lossy().ends_with("Release"));
        paths.sort();
        let mut all = Vec::new();
        for path in paths {
            all.extend(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
        }
        Ok(all)
    }

    fn configure(&self) -> Result<()> {
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: install the package debian-archive-keyring");
        }
        for name in ["lists/partial", "archives/partial", "cache"] {
            cache::create_dir(&self.directory.join(name))?;
        }
        let suite = self.suite;
        let Mirrors { main, security } = Mirrors::find();
        let line = |mirror: &str, suite: &str| {
            format!("deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n")
        };
        let sources = line(&main, suite.name())
            + &line(&main, &format!("{suite}-updates"))
            + &line(&security, &format!("{suite}-security"));
        self.write("sources.list", &sources)?;
        self.write("status", "")?;
        let here = self.directory.display();
        let conf = format!(
            r#"// Written by Romulus's image builder: a private view of the {suite} archive.
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{here}";
Dir::State::lists "{here}/lists";
Dir::State::status "{here}/status";
Dir::State::extended_states "{here}/extended_states";
Dir::Cache "{here}/cache";
Dir::Cache::archives "{here}/archives";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::sourcelist "{here}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Log "{here}";
{proxies}"#,
            proxies = proxies()?,
        );
        self.write("apt.conf", &conf)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.join(name);
        let new = self.directory.join(format!("{name}.new"));
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Unpacks a package into `root`, which gets Debian's merged `/usr`. Maintainer scripts are not run and owners are not
/// kept. `leave_out` are tar's patterns.
pub(crate) fn unpack(package: &Path, root: &Path, leave_out: &[&str]) -> Result<()> {
    for name in ["bin", "lib", "lib64", "sbin"] {
        cache::create_dir(&root.join("usr").join(name))?;
        match std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(e).with_context(|| format!("cannot make links in {}", root.display()));
            }
            _ => {}
        }
    }
    let what = format!("unpacking {}", package.display());
    let mut dpkg = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb")?;
    let tar = dpkg.stdout.take().context("dpkg-deb has no output")?;
    let mut command = Command::new("tar");
    command.args([
        "--extract",
        "--file=-",
        "--keep-directory-symlink",
        "--no-same-owner",
    ]);
    command.args(
        leave_out
            .iter()
            .map(|pattern| format!("--exclude={pattern}")),
    );
    let unpacked = run::output(command.arg("--directory").arg(root).stdin(tar), &what);
    let status = dpkg.wait().context("cannot wait for dpkg-deb")?;
    unpacked?;
    if !status.success() {
        bail!("{what} failed: dpkg-deb: {status}");
    }
    Ok(())
}

struct Mirrors {
    main: String,
    security: String,
}

impl Mirrors {
    /// `$ROMULUS_MIRROR` and `$ROMULUS_SECURITY_MIRROR`, else those of this computer's own apt, else deb.debian.org.
    fn find() -> Self {
        let mut ask = Command::new("apt-get");
        ask.args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
        ]);
        let known = run::text(&mut ask, "apt-get indextargets").unwrap_or_default();
        let choose = |variable: &str, end: &str, default: &str| {
            let wished = std::env::var(variable).ok().filter(|v| !v.is_empty());
            wished.unwrap_or_else(|| mirror_among(&known, end).unwrap_or(default).to_owned())
        };
        Self {
            main: choose("ROMULUS_MIRROR", "/debian", DEFAULT_MIRROR),
            security: choose(
                "ROMULUS_SECURITY_MIRROR",
                "/debian-security",
                DEFAULT_SECURITY_MIRROR,
            ),
        }
    }
}

/// The first network mirror among apt's addresses whose path ends in `end`. Files and discs hold one suite only.
fn mirror_among<'a>(addresses: &'a str, end: &str) -> Option<&'a str> {
    let mut addresses = addresses.lines().map(|l| l.trim().trim_end_matches('/'));
    addresses.find(|a| a.ends_with(end) && (a.starts_with("http:") || a.starts_with("https:")))
}

/// What the private configuration depends on beside this computer's apt: it is made anew when this changes.
fn wishes() -> String {
    let get = |name| std::env::var(name).unwrap_or_default();
    format!(
        "mirror={}\nsecurity={}\n",
        get("ROMULUS_MIRROR"),
        get("ROMULUS_SECURITY_MIRROR")
    )
}

/// The lines of this computer's apt configuration that say how to reach the network.
fn proxies() -> Result<String> {
    let dump = run::text(Command::new("apt-config").arg("dump"), "apt-config dump")?;
    Ok(proxy_lines(&dump))
}

fn proxy_lines(dump: &str) -> String {
    let is_proxy = |line: &&str| {
        let name = line
            .split(' ')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        name.starts_with("acquire::http") && name.contains("proxy")
    };
    dump.lines()
        .filter(is_proxy)
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// `'http://…/x_1%3a2_amd64.deb' x_1%3a2_amd64.deb 1234 SHA256:…`
fn parse_uri_line(line: &str) -> Result<Package> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let parsed = (|| {
        let (file, hash) = (fields.next()?, fields.nth(1)?);
        let mut parts = file.splitn(3, '_');
        let (name, version, _) = (parts.next()?, parts.next()?, parts.next()?);
        let hash = hash.starts_with("SHA256:").then(|| hash.to_owned())?;
        Some(Package {
            name: name.to_owned(),
            version: version.replace("%3a", ":"),
            file: file.to_owned(),
            hash,
        })
    })();
    parsed.with_context(|| format!("apt-get --print-uris printed something else: {line}"))
}

fn age(path: &Path) -> Option<Duration> {
    // A time in the future counts as old: the clock was wrong then or is now.
    SystemTime::now()
        .duration_since(fs::metadata(path).ok()?.modified().ok()?)
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_list_of_addresses_is_read() {
        let line = "'http://deb.debian.org/debian/pool/main/k/kmod/kmod_1%3a30-1_amd64.deb' kmod_1%3a30-1_amd64.deb 95388 SHA256:ab12";
        let package = parse_uri_line(line).unwrap();
        assert_eq!(
            (package.name.as_str(), package.version.as_str()),
            ("kmod", "1:30-1")
        );
        assert_eq!(
            (package.file.as_str(), package.hash.as_str()),
            ("kmod_1%3a30-1_amd64.deb", "SHA256:ab12")
        );
        assert!(parse_uri_line("E: no such package").is_err());
        assert!(parse_uri_line("'x' kmod_1_amd64.deb 9 MD5Sum:ab12").is_err());
    }

    #[test]
    fn the_computers_mirror_is_found_among_others() {
        let known = "https://example.org/node\nfile:/srv/debian\nhttp://ftp.example.org/debian/\nhttp://security.example.org/debian-security/\n";
        assert_eq!(
            mirror_among(known, "/debian"),
            Some("http://ftp.example.org/debian")
        );
        assert_eq!(
            mirror_among(known, "/debian-security"),
            Some("http://security.example.org/debian-security")
        );
        assert_eq!(mirror_among("", "/debian"), None);
    }

    #[test]
    fn only_proxies_are_taken_from_the_computers_configuration() {
        let dump = "Acquire::Retries \"1\";\nAcquire::http::Proxy \"http://proxy:3128\";\nAcquire::https::Proxy::x.org \"DIRECT\";\nAPT::Update::Post-Invoke:: \"rm x\";\n";
        assert_eq!(
            proxy_lines(dump),
            "Acquire::http::Proxy \"http://proxy:3128\";\nAcquire::https::Proxy::x.org \"DIRECT\";\n"
        );
    }
}
