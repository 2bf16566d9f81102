//! `[protection]`: the two hosts, their arbiter, time-outs and epochs.

use super::{
    reader::{Problems, Section},
    schema::{Reader, or},
    values,
};
use romulus_engine::identity::Public;
use romulus_network::{Mode, in_flight::Keep};
use romulus_protocol::{
    control::{Control, Limits, LimitsError},
    time::Time,
    timing::{Timing, TimingError},
};
use std::{
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::Spanned;

/// Where `romulus pair` puts this host's secret, and where it is looked for.
pub const IDENTITY: &str = "/etc/romulus/identity";
/// Where a machine's own directory is made.
const STATE: &str = "/var/lib/romulus";
/// Last-sent versions of pages kept at most where the file says nothing.
const SHADOW_MAX: u64 = 1 << 30;
/// Held output where the file says nothing.
const QUEUE: u64 = 32 << 20;
/// How often a replica is rehearsed where the file says nothing.
const REHEARSE: Duration = Duration::from_mins(1);
/// A rehearsal takes half a second: more often, and it is most of what a backup does.
const REHEARSE_MIN: Duration = Duration::from_secs(5);
/// Held output: a burst of large frames must fit, and a host must not drown in it.
const QUEUE_RANGE: (u64, u64) = (1 << 20, 4 << 30);

/// Interfaces that are watched at most.
const UPLINKS_MAX: usize = 16;

/// How a second host protects the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Protection {
    /// Where the arbiter answers.
    pub arbiter: SocketAddr,
    /// Its public identity.
    pub arbiter_identity: Public,
    /// The two hosts; a new machine starts on the first.
    pub hosts: [Host; 2],
    /// Which output is held.
    pub mode: Mode,
    /// Directory of this machine on this host; the sidecar lies in it.
    pub state: PathBuf,
    /// File of this host's secret.
    pub identity: PathBuf,
    /// What is kept of what is on its way when a host dies.
    pub keep: Keep,
    /// The link between the hosts is plain text.
    pub insecure: bool,
    /// Guest memory is locked.
    pub lock_memory: bool,
    /// How often the backup rehearses its replica; nothing: never.
    pub rehearse: Option<Duration>,
    /// Last-sent versions of pages kept at most, in bytes.
    pub shadow: u64,
    /// Held output at most, in bytes.
    pub queue: u64,
    /// Interfaces of the host whose carrier the machine's service needs.
    pub uplink: Vec<String>,
    /// The protocol's time-outs.
    pub timing: Timing,
    /// When epochs end.
    pub limits: Limits,
}

/// One of the two hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Its name, for people.
    pub name: String,
    /// Its public identity.
    pub identity: Public,
    /// Where checkpoints and heartbeats arrive.
    pub replication: SocketAddr,
    /// Second path for heartbeats, and the local end towards the arbiter.
    pub control: Option<SocketAddr>,
}

impl Protection {
    /// What is allowed but leaves the machine with less cover than it could have.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for host in &self.hosts {
            let name = &host.name;
            match host.control {
                None => warnings.push(format!(
                    "host {name} has no `control` address: heartbeats have one path only, so one broken cable looks like a dead host"
                )),
                Some(control) if control.ip() == host.replication.ip() => warnings.push(format!(
                    "host {name} has the same IP address for `control` and `replication`: that is one path, not two"
                )),
                Some(_) => {}
            }
        }
        match self.mode {
            Mode::NoNet { tcp: true } => warnings.push(
                "`unsafe = true`: TCP connections break, or lose and repeat data, when the machine is taken over"
                    .to_owned(),
            ),
            Mode::NoNet { tcp: false } => warnings.push(
                "`mode = \"no-net\"`: only TCP is held. That is for machines that relay media and nothing else: whoever gets another answer may see the machine go back in time; `mode = \"split\"` holds all but media"
                    .to_owned(),
            ),
            Mode::Net | Mode::Split(_) => {}
        }
        if self.insecure {
            warnings.push(
                "`insecure = true`: all of the guest's memory, keys and passwords included, crosses the link in plain text"
                    .to_owned(),
            );
        }
        warnings
    }
}

impl Reader<'_> {
    /// Reads `[protection]` of the machine called `name` with `memory` bytes.
    pub(super) fn protection(
        &self,
        mut section: Section<'_, '_>,
        name: &str,
        memory: u64,
    ) -> Option<Protection> {
        let arbiter = section
            .require("arbiter", "\"203.0.113.9:7400\"")
            .and_then(|v| section.parse("arbiter", v, values::parse_address));
        let arbiter_identity = section
            .require("arbiter_identity", "\"romulus-1:…\"")
            .and_then(|v| section.parse("arbiter_identity", v, parse_identity));
        let mode = self.mode(&mut section);
        let state = or(section.take("state"), Path::new(STATE).join(name), |v| {
            self.path(&section, "state", v).map(Spanned::into_inner)
        });
        let identity = or(section.take("identity"), PathBuf::from(IDENTITY), |v| {
            self.path(&section, "identity", v).map(Spanned::into_inner)
        });
        let insecure = or(section.take("insecure"), false, |v| {
            section.boolean("insecure", v)
        });
        let resend_output = or(section.take("resend_output"), true, |v| {
            section.boolean("resend_output", v)
        });
        let forward_input = or(section.take("forward_input"), true, |v| {
            section.boolean("forward_input", v)
        });
        let lock_memory = or(section.take("lock_memory"), true, |v| {
            section.boolean("lock_memory", v)
        });
        let rehearse = or(section.take("rehearse"), Some(REHEARSE), |v| {
            section
                .parse("rehearse", v, parse_rehearse)
                .map(Spanned::into_inner)
        });
        // More than all of memory is never used.
        let shadow = or(section.take("shadow"), SHADOW_MAX, |v| {
            section
                .parse("shadow", v, values::parse_size)
                .map(Spanned::into_inner)
        })
        .map(|shadow| shadow.min(memory));
        let queue = or(section.take("queue"), QUEUE, |v| {
            section
                .parse("queue", v, parse_queue)
                .map(Spanned::into_inner)
        });
        let uplink = self.uplink(&mut section);
        let timing = self.timing(&mut section);
        let limits = self.limits(&mut section);
        let hosts = section.sections("host");
        let mut parties = Parties::new(self.problems);
        if let Some(identity) = &arbiter_identity {
            parties.identity("the arbiter", identity);
        }
        if let Some(address) = &arbiter {
            parties.address("the arbiter", address);
        }
        let hosts = self.hosts(hosts, section.span(), &mut parties);
        if let (Some(arbiter), Some(hosts)) = (&arbiter, &hosts) {
            self.reachable(arbiter, hosts);
        }
        section.finish();
        Some(Protection {
            mode: mode?,
            arbiter: arbiter?.into_inner(),
            arbiter_identity: arbiter_identity?.into_inner(),
            hosts: hosts?,
            state: state?,
            identity: identity?,
            keep: Keep {
                output: resend_output?,
                input: forward_input?,
            },
            insecure: insecure?,
            lock_memory: lock_memory?,
            rehearse: rehearse?,
            shadow: shadow?,
            queue: queue?,
            uplink: uplink?,
            timing: timing?,
            limits: limits?,
        })
    }

    fn hosts(
        &self,
        sections: Vec<Section<'_, '_>>,
        span: Range<usize>,
        parties: &mut Parties<'_>,
    ) -> Option<[Host; 2]> {
        let count = sections.len();
        if count != 2 {
            self.problems.at::<()>(
                span.clone(),
                format!(
                    "[protection] needs exactly two [[protection.host]] sections, not {count}; a new machine starts on the first"
                ),
            );
        }
        let mut hosts = Vec::new();
        for mut section in sections {
            let name = section
                .require("name", "\"alba\"")
                .and_then(|v| section.parse("name", v, values::check_name));
            let identity = section
                .require("identity", "\"romulus-1:…\"")
                .and_then(|v| section.parse("identity", v, parse_identity));
            let replication = section
                .require("replication", "\"198.51.100.1:7401\"")
                .and_then(|v| section.parse("replication", v, values::parse_address));
            let control = or(section.take("control"), None, |v| {
                section.parse("control", v, values::parse_address).map(Some)
            });
            let whose = name.as_ref().map_or_else(
                || "a host".to_owned(),
                |name| format!("host {}", name.get_ref()),
            );
            if let Some(name) = &name {
                parties.name(name);
            }
            if let Some(identity) = &identity {
                parties.identity(&whose, identity);
            }
            let addresses = [
                replication.as_ref(),
                control.as_ref().and_then(Option::as_ref),
            ];
            for address in addresses.into_iter().flatten() {
                parties.address(&whose, address);
            }
            section.finish();
            let read = || {
                Some(Host {
                    name: name?.into_inner(),
                    identity: identity?.into_inner(),
                    replication: replication?.into_inner(),
                    control: control?.map(Spanned::into_inner),
                })
            };
            hosts.extend(read());
        }
        let hosts: [Host; 2] = hosts.try_into().ok()?;
        self.paths(&hosts, span)?;
        Some(hosts)
    }

    /// Each path needs an end on both hosts, of one family.
    fn paths(&self, [first, second]: &[Host; 2], span: Range<usize>) -> Option<()> {
        if first.replication.is_ipv4() != second.replication.is_ipv4() {
            return self.problems.at(
                span,
                "`replication` is IPv4 on one host and IPv6 on the other; both ends of a path need the same",
            );
        }
        match (first.control, second.control) {
            (Some(one), Some(other)) if one.is_ipv4() != other.is_ipv4() => self.problems.at(
                span,
                "`control` is IPv4 on one host and IPv6 on the other; both ends of a path need the same",
            ),
            (Some(_), None) | (None, Some(_)) => self.problems.at(
                span,
                "`control` is given for one host only; a path needs an end on both, or on neither",
            ),
            _ => Some(()),
        }
    }

    /// The control address is the local end towards the arbiter.
    fn reachable(&self, arbiter: &Spanned<SocketAddr>, hosts: &[Host; 2]) {
        for host in hosts {
            let local = host.control.unwrap_or(host.replication);
            if host.control.is_some() && local.is_ipv4() != arbiter.get_ref().is_ipv4() {
                self.problems.at::<()>(
                    arbiter.span(),
                    format!(
                        "`arbiter` {} cannot be reached from host {}'s `control` {local}: one is IPv4, the other IPv6",
                        arbiter.get_ref(),
                        host.name
                    ),
                );
            }
        }
    }

    /// The interfaces whose carrier matters.
    fn uplink(&self, section: &mut Section<'_, '_>) -> Option<Vec<String>> {
        let Some(value) = section.take("uplink") else {
            return Some(Vec::new());
        };
        let span = value.span();
        let names = section.list("uplink", value, values::check_interface)?;
        if names.len() > UPLINKS_MAX {
            return self.problems.at(
                span,
                format!("`uplink` takes at most {UPLINKS_MAX} interfaces; where several carry the same network, give their bond"),
            );
        }
        if let Some(name) = twice(&names) {
            return self
                .problems
                .at(span, format!("`uplink` names {name} twice"));
        }
        Some(names)
    }

    /// The time-outs. Those that the file leaves out are as long in relation to `t_b` as the defaults are.
    fn timing(&self, section: &mut Section<'_, '_>) -> Option<Timing> {
        let default = Timing::default();
        let mut timing = default;
        let mut given = Given::default();
        let mut whole = given.take(section, "t_b", &mut timing.t_b);
        let t_b = timing.t_b;
        for (key, field) in [
            ("t_b_max", &mut timing.t_b_max),
            ("t_p", &mut timing.t_p),
            ("t_a", &mut timing.t_a),
            ("t_closed", &mut timing.t_closed),
            ("t_c", &mut timing.t_c),
            ("t_cold", &mut timing.t_cold),
            ("heartbeat", &mut timing.heartbeat),
            ("stall", &mut timing.stall),
            ("retry", &mut timing.retry),
            ("poll", &mut timing.poll),
        ] {
            *field = scaled(*field, t_b, default.t_b);
            whole &= given.take(section, key, field);
        }
        // A cable is no faster out where T_b is longer.
        whole &= given.take(section, "t_uplink", &mut timing.t_uplink);
        timing.t_hold = timing.t_hold.max(timing.t_uplink);
        whole &= given.take(section, "t_hold", &mut timing.t_hold);
        if let Some(value) = section.take("rho_ppm") {
            let span = value.span();
            match section.integer("rho_ppm", value, 1, 999_999) {
                Some(rho) => {
                    timing.rho_ppm = u32::try_from(rho).unwrap_or(u32::MAX);
                    given.0.push(("rho_ppm", span));
                }
                None => whole = false,
            }
        }
        if !whole {
            return None;
        }
        match timing.check() {
            Ok(()) => Some(timing),
            Err(error) => {
                let keys: &[&str] = match error {
                    TimingError::Heartbeats { .. } => &["heartbeat", "t_b"],
                    TimingError::StopAfterClaim { .. } => &["t_p", "t_a"],
                    TimingError::Overlap { .. } => &["t_p", "t_b", "rho_ppm"],
                    TimingError::Order(first, _) if first.contains("stall") => &["stall"],
                    TimingError::Order("T_closed", _) => &["t_closed"],
                    TimingError::Order("t_uplink", _) => &["t_hold", "t_uplink"],
                    TimingError::Order("T_b", _) => &["t_b_max", "t_b"],
                    TimingError::Order(_, "T_c") => &["t_c", "t_b_max"],
                    TimingError::Order(_, "T_cold") => &["t_cold", "t_b_max"],
                    _ => &[],
                };
                self.problems.at(
                    given.place(keys, section.span()),
                    format!("unsafe time-outs: {error}"),
                )
            }
        }
    }

    /// When epochs end.
    fn limits(&self, section: &mut Section<'_, '_>) -> Option<Limits> {
        let mut limits = Limits::default();
        let mut given = Given::default();
        let mut whole = given.take(section, "epoch_shortest", &mut limits.shortest);
        // The longer intervals follow a shortest one that is longer than they are by default.
        limits.longest = limits.longest.max(limits.shortest);
        whole &= given.take(section, "epoch_longest", &mut limits.longest);
        limits.idle = limits.idle.max(limits.longest);
        whole &= given.take(section, "epoch_idle", &mut limits.idle);
        let mut fixed = Duration::ZERO;
        let before = given.0.len();
        whole &= given.take(section, "epoch_fixed", &mut fixed);
        limits.fixed = (given.0.len() > before).then_some(fixed);
        if let Some(value) = section.take("guest_share") {
            match section.number("guest_share", value) {
                Some(share) => {
                    limits.share = *share.get_ref();
                    given.0.push(("guest_share", share.span()));
                }
                None => whole = false,
            }
        }
        if !whole {
            return None;
        }
        match Control::new(limits, Time(0)) {
            Ok(_) => Some(limits),
            Err(error) => {
                let keys: &[&str] = match error {
                    LimitsError::Share(_) => &["guest_share"],
                    LimitsError::Order(..) => &["epoch_shortest", "epoch_longest", "epoch_idle"],
                    LimitsError::Fixed => &["epoch_fixed"],
                };
                self.problems
                    .at(given.place(keys, section.span()), error.to_string())
            }
        }
    }
}

/// The optional lengths of time that the file gives, with their places.
#[derive(Default)]
struct Given(Vec<(&'static str, Range<usize>)>);

impl Given {
    /// Takes `key` into `field` where the file has it; returns whether it is right or left out.
    fn take(
        &mut self,
        section: &mut Section<'_, '_>,
        key: &'static str,
        field: &mut Duration,
    ) -> bool {
        let Some(value) = section.take(key) else {
            return true;
        };
        match section.parse(key, value, values::parse_interval) {
            Some(interval) => {
                self.0.push((key, interval.span()));
                *field = interval.into_inner();
                true
            }
            None => false,
        }
    }

    /// Where to show a problem with `keys`: at the first of them that the file gives.
    fn place(&self, keys: &[&str], otherwise: Range<usize>) -> Range<usize> {
        let of = |key: &str| self.0.iter().find(|(given, _)| *given == key);
        keys.iter()
            .find_map(|key| of(key))
            .or_else(|| self.0.first())
            .map_or(otherwise, |(_, span)| span.clone())
    }
}

/// Who is in the file so far: names, identities and addresses may occur once.
struct Parties<'a> {
    problems: &'a Problems,
    names: Vec<String>,
    identities: Vec<(Public, String)>,
    addresses: Vec<(SocketAddr, String)>,
}

impl<'a> Parties<'a> {
    fn new(problems: &'a Problems) -> Self {
        Self {
            problems,
            names: Vec::new(),
            identities: Vec::new(),
            addresses: Vec::new(),
        }
    }

    fn name(&mut self, name: &Spanned<String>) {
        if self.names.contains(name.get_ref()) {
            self.problems.at::<()>(
                name.span(),
                format!(
                    "both hosts are called {}; each needs its own name",
                    name.get_ref()
                ),
            );
        }
        self.names.push(name.get_ref().clone());
    }

    fn identity(&mut self, whose: &str, identity: &Spanned<Public>) {
        let of = |(known, _): &&(Public, String)| known == identity.get_ref();
        if let Some((_, first)) = self.identities.iter().find(of) {
            self.problems.at::<()>(
                identity.span(),
                format!(
                    "this is the identity of {first} already; each host and the arbiter has its own, made there by `romulus pair`"
                ),
            );
        }
        self.identities
            .push((*identity.get_ref(), whose.to_owned()));
    }

    fn address(&mut self, whose: &str, address: &Spanned<SocketAddr>) {
        let new = *address.get_ref();
        // On one computer, for a trial, hosts differ in the port alone.
        let clash = |known: SocketAddr, of: &str| {
            known == new || (of != whose && known.ip() == new.ip() && !new.ip().is_loopback())
        };
        if let Some((known, first)) = self.addresses.iter().find(|(known, of)| clash(*known, of)) {
            let why = if first == "the arbiter" {
                "the arbiter must lie on neither of the two hosts"
            } else {
                "every path needs an address of its own"
            };
            self.problems.at::<()>(
                address.span(),
                format!("{new} is {first}'s address already ({known}); {why}"),
            );
        }
        self.addresses.push((new, whose.to_owned()));
    }
}

/// The first name that comes a second time.
fn twice(names: &[String]) -> Option<&String> {
    let again = |(at, name): &(usize, &String)| names[..*at].contains(name);
    names.iter().enumerate().find(again).map(|(_, name)| name)
}

/// `default` in relation to the `t_b` that the file gives.
fn scaled(default: Duration, t_b: Duration, default_t_b: Duration) -> Duration {
    let nanoseconds = default.as_nanos() * t_b.as_nanos() / default_t_b.as_nanos().max(1);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

fn parse_identity(text: &str) -> Result<Public, String> {
    text.parse::<Public>()
        .map_err(|error| format!("{error}; `romulus pair` prints the right one on its host"))
}

/// How often a replica is rehearsed.
fn parse_rehearse(text: &str) -> Result<Option<Duration>, String> {
    if text == "never" {
        return Ok(None);
    }
    let interval = values::parse_duration(text).map_err(|why| format!("{why}, or \"never\""))?;
    if interval < REHEARSE_MIN {
        return Err(format!("{text:?} is too often: at least 5 s, or \"never\""));
    }
    Ok(Some(interval))
}

fn parse_queue(text: &str) -> Result<u64, String> {
    let size = values::parse_size(text)?;
    let (least, most) = QUEUE_RANGE;
    if (least..=most).contains(&size) {
        Ok(size)
    } else {
        Err(format!(
            "{text:?} is out of range: at least {} MiB, at most {} GiB",
            least >> 20,
            most >> 30
        ))
    }
}
