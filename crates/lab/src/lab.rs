//! The whole: networks, hosts, client.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, ensure};
use images::Progress;

use crate::client::Client;
use crate::config::{Kind, LabConfig};
use crate::detect::detect;
use crate::enter::guard;
use crate::host::{Body, Host};
use crate::image::{self, HostImage};
use crate::links::{Networks, Port};
use crate::network::{LAB_SUFFIX, MAX_HOSTS, Network};
use crate::qemu::Qemu;
use crate::space::Space;

/// Where sockets and roots of hosts are: in memory, seen by nobody outside, gone with the lab.
const RUN: &str = "/run/lab";

/// How many labs' logs are kept.
const LOGS_KEPT: usize = 10;

/// A lab: hosts, the networks between them, a client. All of it ends when this is dropped.
pub struct Lab {
    // In this order: hosts go before the networks do.
    hosts: Vec<Arc<Host>>,
    client: Client,
    kind: Kind,
    logs: PathBuf,
    image: HostImage,
}

impl Lab {
    /// Starts a lab, and waits until every host is up. Only inside [`lab::inside`](crate::inside).
    ///
    /// # Errors
    /// Outside; where something is missing, not permitted or full; where a host does not come up, with the end of its
    /// serial log.
    pub fn start(config: &LabConfig, progress: &Progress) -> Result<Self> {
        guard()?;
        ensure!(
            (1..=MAX_HOSTS).contains(&config.hosts),
            "a lab has 1 to {MAX_HOSTS} hosts, not {}",
            config.hosts
        );
        let kind = config.kind.map_or_else(detect, Ok)?;
        let image = config
            .image
            .clone()
            .map_or_else(|| image::prepare(progress), Ok)?;
        let logs = config.logs.clone().map_or_else(new_logs, Ok)?;
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        fs::create_dir_all(RUN).with_context(|| format!("cannot make {RUN}"))?;

        let networks = Arc::new(Networks::make()?);
        let hosts = match kind {
            Kind::Qemu => qemu_hosts(config, &image, &logs)?,
            Kind::Namespaces => space_hosts(config, &image, &logs),
        };
        let hosts = hosts.into_iter().map(Arc::new).collect();
        let lab = Self {
            hosts,
            client: Client::new(networks),
            kind,
            logs,
            image,
        };
        lab.boot(progress)?;
        Ok(lab)
    }

    fn boot(&self, progress: &Progress) -> Result<()> {
        let step = progress.step(format!(
            "booting {} hosts ({})",
            self.hosts.len(),
            self.kind
        ));
        let results: Vec<Result<()>> = thread::scope(|scope| {
            let boots: Vec<_> = self
                .hosts
                .iter()
                .map(|host| scope.spawn(|| host.power_on()))
                .collect();
            boots
                .into_iter()
                .map(|boot| {
                    boot.join()
                        .unwrap_or_else(|_| Err(anyhow!("the thread panicked")))
                })
                .collect()
        });
        for result in results {
            result.with_context(|| {
                format!(
                    "the lab did not start; its logs are in {}",
                    self.logs.display()
                )
            })?;
        }
        let slowest = self
            .hosts
            .iter()
            .filter_map(|host| host.up_after())
            .max()
            .unwrap_or_default();
        step.done(format!(
            "{} hosts up, the last after {:.1} s",
            self.hosts.len(),
            slowest.as_secs_f64()
        ));
        Ok(())
    }

    /// Host `n`, from 1.
    ///
    /// # Panics
    /// Where there is no such host.
    pub fn host(&self, n: usize) -> &Host {
        &self.hosts[n - 1]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Arc<Host>] {
        &self.hosts
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The address of the lab's own process on the control network: a place beside all hosts. Whatever listens there
    /// outlives each of them.
    #[allow(
        clippy::unused_self,
        reason = "the plan of addresses is not the caller's business"
    )]
    pub fn address(&self) -> Ipv4Addr {
        Network::Control.address(LAB_SUFFIX)
    }

    /// What the hosts are made of.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The directory with the hosts' serial logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// What the hosts were started from.
    pub fn image(&self) -> &HostImage {
        &self.image
    }
}

fn qemu_hosts(config: &LabConfig, image: &HostImage, logs: &Path) -> Result<Vec<Host>> {
    let initrd = Arc::new(image::initrd(image, &config.payload, logs)?);
    (1..=config.hosts)
        .map(|n| {
            let body = Qemu {
                n,
                memory_mib: config.host_memory_mib,
                image: image.clone(),
                initrd: Arc::clone(&initrd),
                serial: logs.join(format!("h{n}.serial")),
                sockets: RUN.into(),
            };
            // Before the taps are made: they are removed with the host.
            let host = Host::new(n, Body::Qemu(body));
            for network in Network::ALL {
                Port::new(network, n).make_tap(network)?;
            }
            Ok(host)
        })
        .collect()
}

fn space_hosts(config: &LabConfig, image: &HostImage, logs: &Path) -> Vec<Host> {
    let host = |n| {
        Host::new(
            n,
            Body::Space(Space {
                n,
                agent: image.agent.clone(),
                payload: config.payload.clone(),
                log: logs.join(format!("h{n}.serial")),
                directory: Path::new(RUN).join(format!("h{n}")),
            }),
        )
    };
    (1..=config.hosts).map(host).collect()
}

/// A directory for a lab's logs, named by its time; the oldest go.
fn new_logs() -> Result<PathBuf> {
    let all = images::cache_dir().join("lab").join("logs");
    fs::create_dir_all(&all).with_context(|| format!("cannot make {}", all.display()))?;
    let mut old: Vec<PathBuf> = fs::read_dir(&all)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    old.sort();
    for path in old.iter().rev().skip(LOGS_KEPT - 1) {
        // Another lab may be removing it at the same time.
        let _ = fs::remove_dir_all(path);
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    // Inside, every lab has the same few process numbers: nanoseconds tell them apart.
    Ok(all.join(format!("{}-{:09}", now.as_secs(), now.subsec_nanos())))
}
