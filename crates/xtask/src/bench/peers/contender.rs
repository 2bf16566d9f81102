//! Those compared, and how each is started and loses its host.

use super::{
    colo::{Colo, Release},
    keepalived::Keepalived,
};
use crate::{
    assets::{Assets, Image},
    bench::contender::{self as single, Stable, Up},
    machine_host,
    pair::Pair,
};
use anyhow::Result;
use lab::Lab;
use std::{
    path::Path,
    time::{Duration, SystemTime},
};

/// How long a machine that lost its cover under load may take to have it again before its power is cut.
const COVERED_WITHIN: Duration = Duration::from_secs(10);

/// One of those compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Contender {
    /// Our machine without protection.
    Alone,
    /// QEMU with vhost, without protection.
    QemuVhost,
    /// Our machine, all output held.
    Net,
    /// Our machine, all output held but media.
    Split,
    /// Our machine, only TCP held.
    NoNet,
    /// QEMU COLO, a checkpoint a second at least.
    Colo,
    /// The same with QEMU's own longest time between checkpoints, 20 s.
    ColoSeldom,
    /// Two Kamailios, VRRP's usual interval of 1 s.
    Keepalived,
    /// The same with an interval of 0.2 s.
    KeepalivedFast,
}

impl Contender {
    /// In the order of the table.
    pub(super) const ALL: [Self; 9] = [
        Self::Alone,
        Self::QemuVhost,
        Self::Net,
        Self::Split,
        Self::NoNet,
        Self::Colo,
        Self::ColoSeldom,
        Self::Keepalived,
        Self::KeepalivedFast,
    ];

    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Alone => "romulus, unprotected",
            Self::QemuVhost => "QEMU vhost, unprotected",
            Self::Net => "romulus net",
            Self::Split => "romulus split",
            Self::NoNet => "romulus no-net",
            Self::Colo => "QEMU COLO, 1 s",
            Self::ColoSeldom => "QEMU COLO, 20 s",
            Self::Keepalived => "keepalived, 1 s",
            Self::KeepalivedFast => "keepalived, 0.2 s",
        }
    }

    /// For the names of files and users.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::QemuVhost => "qemu-vhost",
            Self::Net => "net",
            Self::Split => "split",
            Self::NoNet => "no-net",
            Self::Colo => "colo",
            Self::ColoSeldom => "colo-seldom",
            Self::Keepalived => "keepalived",
            Self::KeepalivedFast => "keepalived-fast",
        }
    }

    /// Whether it is COLO.
    pub(super) fn is_colo(self) -> bool {
        matches!(self, Self::Colo | Self::ColoSeldom)
    }
}

/// The rates over UDP, and for how many seconds each. COLO lets some answers go at once and keeps others for a checkpoint: the median
/// of thirty is one or the other by chance.
pub(super) fn rates(quick: bool) -> &'static [(u32, u32)] {
    if quick {
        &[(5, 4), (20, 3), (100, 2)]
    } else {
        &[(1, 30), (5, 30), (20, 10), (50, 6), (100, 5)]
    }
}

/// A contender that runs and answers.
pub(super) enum Running<'lab> {
    /// On the first host alone.
    Single(&'lab Lab, Option<Up<'lab>>),
    Pair(Box<Pair<'lab>>),
    Colo(Colo<'lab>),
    Keepalived(Keepalived<'lab>),
}

impl<'lab> Running<'lab> {
    /// Starts a contender on hosts on which nothing runs.
    ///
    /// # Errors
    /// It does not come up.
    pub(super) fn start(
        contender: Contender,
        lab: &'lab Lab,
        assets: &'lab Assets,
        release: Release,
    ) -> Result<Self> {
        let guest = assets.guest(Image::REGISTRAR_12)?;
        let single = |kind| {
            machine_host::place_romulus(lab.host(1), assets)?;
            let up = Stable::new(lab, guest)?.start(kind)?;
            up.settle()?;
            Ok(Self::Single(lab, Some(up)))
        };
        let pair = |mode: &str| {
            let pair = Pair::protected(lab, assets, guest, |file| {
                if let Some(protection) = &mut file.protection {
                    protection.mode = Some(mode.to_owned());
                }
            })?;
            Ok(Self::Pair(Box::new(pair)))
        };
        let keepalived = |advert| {
            let guest = assets.guest(Image::REGISTRAR_KEEPALIVED_12)?;
            Keepalived::start(lab, assets, guest, advert).map(Self::Keepalived)
        };
        let colo =
            |checkpoint_ms| Colo::start(lab, assets, guest, release, checkpoint_ms).map(Self::Colo);
        match contender {
            Contender::Alone => single(single::Contender::Romulus),
            Contender::QemuVhost => single(single::Contender::QemuVhost),
            Contender::Net => pair("net"),
            Contender::Split => pair("split"),
            Contender::NoNet => pair("no-net"),
            Contender::Colo => colo(1000),
            Contender::ColoSeldom => colo(20_000),
            Contender::Keepalived => keepalived("1"),
            Contender::KeepalivedFast => keepalived("0.2"),
        }
    }

    /// Cuts the power of the host that serves, and gives the moment just before.
    ///
    /// # Errors
    /// The lab does not do as it should, or a machine of ours is not protected.
    pub(super) fn cut(&mut self) -> Result<SystemTime> {
        match self {
            Self::Single(lab, up) => {
                let at = SystemTime::now();
                lab.host(1).power_off()?;
                drop(up.take());
                Ok(at)
            }
            Self::Pair(pair) => {
                let runner = pair.protected_runner(COVERED_WITHIN)?;
                Ok(pair.cut_power(runner)?.at)
            }
            Self::Colo(colo) => colo.cut(),
            Self::Keepalived(keepalived) => keepalived.cut(),
        }
    }

    /// Keeps what tells why something failed.
    ///
    /// # Errors
    /// The folder can't be written.
    pub(super) fn keep_logs(&self, folder: &Path) -> Result<()> {
        let lab = match self {
            Self::Pair(pair) => return pair.keep_logs(folder),
            Self::Single(lab, _) => lab,
            Self::Colo(colo) => colo.lab,
            Self::Keepalived(keepalived) => keepalived.lab,
        };
        for host in lab.hosts().iter().filter(|host| host.is_on()) {
            machine_host::keep_logs(host, folder)?;
        }
        Ok(())
    }
}
