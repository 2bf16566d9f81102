//! Hosts, and what can happen to them.

use lab::{Lab, LabConfig};

fn main() -> anyhow::Result<()> {
    let progress = images::Progress::new();
    let image = lab::inside(|| lab::prepare(&progress))?;
    let config = LabConfig { image: Some(image), ..Default::default() };
    let lab = Lab::start(&config, &progress)?;
    for h in lab.hosts() {
        println!("{} {:?}", h.name(), h.up_after());
        println!("{}", h.sh("ip -br addr; ls -la /dev/kvm; dmesg | tail -n 40; uptime; free -m; ping -c 2 198.51.100.2; ping -c1 192.0.2.254")?);
    }
    Ok(())
}
