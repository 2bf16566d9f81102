//! `cargo xtask lab`.

use lab::{Lab, LabConfig};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: Args) -> anyhow::Result<()> {
    let progress = images::Progress::new();
    let image = lab::inside(|| lab::prepare(&progress))?;
    let config = LabConfig { image: Some(image), ..Default::default() };
    let lab = Lab::start(&config, &progress)?;
    for h in lab.hosts() {
        println!("{} {:?}", h.name(), h.up_after());
        println!("{}", h.sh("ip -br addr; ls -la /dev/kvm; uptime; free -m; ping -c 2 198.51.100.2; ping -c1 192.0.2.254")?);
    }
    Ok(())
}
