//! What is measured, and in which order: a piece of work that needs the same machine as the one before it comes next, for
//! to bring a machine up is what takes long.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The guest that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guest {
    /// A registrar, proxy and redirect server.
    Sip,
    /// A SIP server and a media relay in one machine.
    Pbx,
    /// Two machines on the same pair of hosts: a SIP server, and a media relay.
    Two,
}

/// How it is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Not at all: one host.
    Unprotected,
    /// All output is held.
    Net,
    /// Media passes at once, all else is held.
    Split,
    /// Nothing but TCP is held.
    NoNet,
    /// In one pair of hosts, the SIP server in `net` and the media relay in `no-net`: as in the paper.
    NetAndNoNet,
}

/// What has to stand for a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The guest.
    pub guest: Guest,
    /// The length of all its epochs in milliseconds; none where Romulus chooses it.
    pub epoch_ms: Option<u32>,
    /// Its protection.
    pub mode: Mode,
}

/// How SIP is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// UDP.
    Udp,
    /// One TCP connection for all.
    TcpOne,
    /// A TCP connection each.
    TcpEach,
}

/// `SIPstone`'s tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stone {
    /// Users register.
    Registration,
    /// Calls to somewhere else, passed on without a look at who is registered.
    OutboundProxy,
    /// Calls whose callers are told where to call instead.
    Redirect,
    /// Calls to users who are not there.
    Proxy480,
    /// Calls to users who are there, and answer.
    Proxy200,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Experiment 1: rates stepped up to the knee.
    Signalling(Carrier),
    /// Experiment 5: rates stepped up to the knee.
    Stone(Stone),
    /// Experiment 3 without a failure, at so many calls.
    Media(u32),
    /// Experiment 2: registrations while the host loses its power, time number so.
    Registrations(u32),
    /// Experiment 3 with a failure, at so many calls.
    MediaAcross(u32),
    /// Experiment 4, time number so.
    Calls(u32),
}

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Job {
    /// What has to stand.
    pub place: Place,
    /// What is done.
    pub what: What,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effort {
    /// All that there is.
    Full,
    /// Everything once, and shortly: shows that the measurements work, their figures are rough.
    Quick,
    /// A part of experiments 1 and 2 on one pair: the least that still goes from end to end.
    Smallest,
}

/// The five experiments.
pub const EXPERIMENTS: [u8; 5] = [1, 2, 3, 4, 5];

/// The order of the three ways to carry SIP.
pub const CARRIERS: [Carrier; 3] = [Carrier::Udp, Carrier::TcpOne, Carrier::TcpEach];

/// The order of `SIPstone`'s tests.
pub const STONES: [Stone; 5] = [
    Stone::Registration,
    Stone::OutboundProxy,
    Stone::Redirect,
    Stone::Proxy480,
    Stone::Proxy200,
];

impl What {
    /// The experiment that it belongs to.
    pub fn experiment(self) -> u8 {
        match self {
            Self::Signalling(_) => 1,
            Self::Registrations(_) => 2,
            Self::Media(_) | Self::MediaAcross(_) => 3,
            Self::Calls(_) => 4,
            Self::Stone(_) => 5,
        }
    }

    /// Whether a host loses its power in it.
    pub fn cuts_power(self) -> bool {
        matches!(
            self,
            Self::Registrations(_) | Self::MediaAcross(_) | Self::Calls(_)
        )
    }
}

/// All pieces of work of the wanted experiments, in their order.
pub fn jobs(effort: Effort, experiments: &[u8]) -> Vec<Job> {
    let mut jobs: Vec<Job> = match effort {
        Effort::Full => full(),
        Effort::Quick => quick(),
        Effort::Smallest => smallest(),
    };
    jobs.retain(|job| experiments.contains(&job.what.experiment()));
    jobs.sort();
    jobs.dedup();
    jobs
}

fn place(guest: Guest, mode: Mode, epoch_ms: Option<u32>) -> Place {
    Place {
        guest,
        epoch_ms,
        mode,
    }
}

fn full() -> Vec<Job> {
    /// How often the power is cut for the same question.
    const CUTS: u32 = 3;
    /// Calls at a time.
    const MANY: [u32; 4] = [1, 2, 4, 8];
    /// The paper's lengths of epochs.
    const EPOCHS: [u32; 4] = [5, 25, 100, 200];
    let mut jobs = Vec::new();
    let mut add = |place, what| jobs.push(Job { place, what });
    for mode in [Mode::Unprotected, Mode::Net, Mode::NoNet] {
        let own = place(Guest::Sip, mode, None);
        for carrier in CARRIERS {
            add(own, What::Signalling(carrier));
        }
        for stone in STONES {
            add(own, What::Stone(stone));
        }
    }
    for mode in [Mode::Net, Mode::NoNet] {
        for number in 1..=CUTS {
            add(place(Guest::Sip, mode, None), What::Registrations(number));
        }
        for epoch in EPOCHS {
            add(place(Guest::Sip, mode, Some(epoch)), What::Registrations(1));
        }
    }
    for mode in [Mode::Unprotected, Mode::Net, Mode::Split, Mode::NoNet] {
        let own = place(Guest::Pbx, mode, None);
        for calls in MANY {
            add(own, What::Media(calls));
        }
        if mode != Mode::Unprotected {
            add(own, What::MediaAcross(2));
        }
    }
    for epoch in EPOCHS {
        for mode in [Mode::Net, Mode::Split, Mode::NoNet] {
            let swept = place(Guest::Pbx, mode, Some(epoch));
            add(swept, What::Media(2));
            add(swept, What::MediaAcross(2));
        }
    }
    for number in 1..=CUTS {
        add(place(Guest::Pbx, Mode::Split, None), What::Calls(number));
        add(
            place(Guest::Two, Mode::NetAndNoNet, None),
            What::Calls(number),
        );
    }
    jobs
}

fn quick() -> Vec<Job> {
    let mut jobs = Vec::new();
    let mut add = |guest, mode, what| {
        jobs.push(Job {
            place: place(guest, mode, None),
            what,
        });
    };
    // Each mode more takes a minute: `no-net` is only in the paper's layout here.
    for mode in [Mode::Unprotected, Mode::Net] {
        for carrier in CARRIERS {
            add(Guest::Sip, mode, What::Signalling(carrier));
        }
        for stone in STONES {
            add(Guest::Sip, mode, What::Stone(stone));
        }
    }
    add(Guest::Sip, Mode::Net, What::Registrations(1));
    for mode in [Mode::Unprotected, Mode::Split] {
        add(Guest::Pbx, mode, What::Media(1));
    }
    add(Guest::Pbx, Mode::Split, What::MediaAcross(1));
    add(Guest::Pbx, Mode::Split, What::Calls(1));
    add(Guest::Two, Mode::NetAndNoNet, What::Calls(1));
    jobs
}

fn smallest() -> Vec<Job> {
    let own = place(Guest::Sip, Mode::Net, None);
    [What::Signalling(Carrier::Udp), What::Registrations(1)]
        .map(|what| Job { place: own, what })
        .to_vec()
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sip => "SIP server",
            Self::Pbx => "SIP server and relay in one machine",
            Self::Two => "SIP server and relay in two machines",
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unprotected => "unprotected",
            Self::Net => "net",
            Self::Split => "split",
            Self::NoNet => "no-net",
            Self::NetAndNoNet => "net and no-net",
        })
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::TcpOne => "TCP_1",
            Self::TcpEach => "TCP_N",
        })
    }
}

impl fmt::Display for Stone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Registration => "registration",
            Self::OutboundProxy => "outbound proxy",
            Self::Redirect => "redirect",
            Self::Proxy480 => "proxy-480",
            Self::Proxy200 => "proxy-200",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.guest, self.mode)?;
        match self.epoch_ms {
            Some(epoch) => write!(f, ", epochs of {epoch} ms"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.place;
        match self.what {
            What::Signalling(carrier) => write!(f, "1: {carrier} ({place})"),
            What::Registrations(number) => {
                write!(f, "2: registrations across cut {number} ({place})")
            }
            What::Media(calls) => write!(f, "3: {calls} calls ({place})"),
            What::MediaAcross(calls) => write!(f, "3: {calls} calls across a cut ({place})"),
            What::Calls(number) => write!(f, "4: calls across cut {number} ({place})"),
            What::Stone(stone) => write!(f, "5: {stone} ({place})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{EXPERIMENTS, Effort, Job, Mode, What, jobs};

    /// How often the machine that stands is not the next job's.
    fn changes(jobs: &[Job]) -> usize {
        jobs.windows(2)
            .filter(|pair| pair[0].place != pair[1].place)
            .count()
    }

    #[test]
    fn each_place_is_visited_once() {
        for effort in [Effort::Full, Effort::Quick, Effort::Smallest] {
            let jobs = jobs(effort, &EXPERIMENTS);
            let mut places: Vec<_> = jobs.iter().map(|job| job.place).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(changes(&jobs), places.len() - 1, "{effort:?}");
        }
    }

    #[test]
    fn the_long_forms_have_all_five_and_one_can_be_asked_for() {
        for effort in [Effort::Full, Effort::Quick] {
            for experiment in EXPERIMENTS {
                let one = jobs(effort, &[experiment]);
                assert!(!one.is_empty(), "{effort:?} {experiment}");
                assert!(one.iter().all(|job| job.what.experiment() == experiment));
            }
        }
        assert!(jobs(Effort::Full, &[]).is_empty());
    }

    #[test]
    fn the_power_is_cut_last_in_each_place_and_never_without_a_backup() {
        let jobs = jobs(Effort::Full, &EXPERIMENTS);
        for pair in jobs.windows(2) {
            let back = pair[0].what.cuts_power() && !pair[1].what.cuts_power();
            assert!(!(back && pair[0].place == pair[1].place), "{pair:?}");
        }
        assert!(
            jobs.iter()
                .all(|job| !(job.what.cuts_power() && job.place.mode == Mode::Unprotected))
        );
        assert!(jobs.iter().any(|job| matches!(job.what, What::Calls(_))));
    }

    #[test]
    fn a_job_is_told_apart_in_writing() {
        let jobs = jobs(Effort::Full, &EXPERIMENTS);
        let mut names: Vec<String> = jobs.iter().map(Job::to_string).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), jobs.len());
        for job in jobs {
            let text = serde_json::to_string(&job).unwrap();
            assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
        }
    }
}
