//! The lab's own faults do what they say, seen from outside the host; and nothing outlives a lab.

use super::{Scenario, case::Case};
use crate::process;
use anyhow::{Context as _, Result, ensure};
use lab::Network;
use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// This file's scenarios.
pub(super) const ALL: &[Scenario] = &[
    Scenario::new(
        "faults/power",
        "a host without power is gone at once, and comes back",
        &[],
        power,
    ),
    Scenario::new(
        "faults/hang",
        "a host that hangs goes on where it was",
        &[],
        hang,
    ),
    Scenario::new(
        "faults/cut",
        "a silent cut keeps the carrier, a visible one does not",
        &[],
        cut,
    ),
    Scenario::new(
        "faults/impair",
        "loss and delay are as large as asked for",
        &[],
        impair,
    ),
    Scenario::outside(
        "faults/nothing-outlives",
        "after a kill -9 of a lab nothing of it is left",
        nothing_outlives,
    ),
];

/// How long an effect may take to be seen.
const SOON: Duration = Duration::from_secs(30);

/// Whether the host answers a ping from the client within half a second.
fn answers(case: &Case) -> Result<bool> {
    let address = case.host().address(Network::Service).to_string();
    let mut command = case.lab.client().command("ping")?;
    command
        .args(["-c", "1", "-W", "0.5", &address])
        .stdin(Stdio::null());
    Ok(process::output_within(&mut command, SOON)?.status.success())
}

/// Waits until the host answers pings, or does not any more.
fn wait_answers(case: &Case, wanted: bool) -> Result<()> {
    let seen = process::poll(SOON, Duration::from_millis(50), || {
        Ok((answers(case)? == wanted).then_some(()))
    })?;
    let what = if wanted {
        "does not answer"
    } else {
        "still answers"
    };
    seen.with_context(|| format!("the host {what} after {} s", SOON.as_secs()))
}

/// What the host's kernel was given at its start, another one each time.
fn boot_id(case: &Case) -> Result<String> {
    case.host().sh("cat /proc/sys/kernel/random/boot_id")
}

fn power(case: &Case) -> Result<()> {
    wait_answers(case, true).context("before the fault")?;
    let before = boot_id(case)?;
    case.host().power_off()?;
    ensure!(!answers(case)?, "a host without power answers");
    ensure!(
        case.host().sh("true").is_err(),
        "a host without power runs programs"
    );
    case.host().power_on()?;
    wait_answers(case, true)?;
    ensure!(boot_id(case)? != before, "the host was not started anew");
    Ok(())
}

fn hang(case: &Case) -> Result<()> {
    let before = boot_id(case)?;
    case.host().hang()?;
    ensure!(!answers(case)?, "a host that hangs answers");
    case.host().resume()?;
    wait_answers(case, true)?;
    ensure!(boot_id(case)? == before, "the host was started anew");
    Ok(())
}

fn cut(case: &Case) -> Result<()> {
    let host = case.host();
    let carrier =
        || Ok::<_, anyhow::Error>(host.sh("cat /sys/class/net/svc/carrier")?.trim() == "1");
    host.cut(Network::Service)?;
    wait_answers(case, false).context("after a silent cut")?;
    ensure!(carrier()?, "a silent cut took the carrier away");
    host.mend(Network::Service)?;
    wait_answers(case, true).context("after a silent cut was mended")?;

    host.unplug(Network::Service)?;
    let seen = process::poll(SOON, Duration::from_millis(50), || {
        Ok((!carrier()?).then_some(()))
    })?;
    seen.context("the host has its carrier after a visible cut")?;
    wait_answers(case, false).context("after a visible cut")?;
    host.plug(Network::Service)?;
    wait_answers(case, true).context("after the plug was put back")
}

/// Pings the host; gives the answers in percent and the shortest round trip in ms.
fn ping(case: &Case, count: u32) -> Result<(f64, f64)> {
    let address = case.host().address(Network::Service).to_string();
    let mut command = case.lab.client().command("ping")?;
    command
        .args(["-c", &count.to_string(), "-i", "0.01", "-W", "1", &address])
        .env("LC_ALL", "C");
    let output = process::output_within(&mut command, Duration::from_secs(30))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let times: Vec<f64> = said
        .lines()
        .filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok())
        .collect();
    let answered = u32::try_from(times.len()).map(f64::from)? / f64::from(count) * 100.0;
    Ok((
        answered,
        times.iter().copied().fold(f64::INFINITY, f64::min),
    ))
}

fn impair(case: &Case) -> Result<()> {
    let host = case.host();
    host.impair(Network::Service, 0.0, Duration::from_millis(60))?;
    let (answered, shortest) = ping(case, 20)?;
    ensure!(
        answered > 99.0 && shortest >= 59.0,
        "with 60 ms of delay {answered} % answer, the first after {shortest} ms"
    );
    host.impair(Network::Service, 30.0, Duration::ZERO)?;
    let (answered, _) = ping(case, 400)?;
    // Four standard deviations around 70 %.
    ensure!(
        (60.0..=80.0).contains(&answered),
        "with a loss of 30 % {answered} % answer"
    );
    host.clear(Network::Service)?;
    let (answered, shortest) = ping(case, 20)?;
    ensure!(
        answered > 99.0 && shortest < 50.0,
        "without faults {answered} % answer, the first after {shortest} ms"
    );
    Ok(())
}

/// A process, by number and start time: numbers are used again.
type Process = (i32, u64);

fn nothing_outlives(assets: &Path, logs: &Path) -> Result<()> {
    // As a test starts one: by a process in between, which is the one that is killed. To a shell its own program would be another.
    let program = format!("/proc/{}/exe", std::process::id());
    let mut child = Command::new("sh")
        .args(["-c", "\"$@\"; exit", "sh", &program])
        .args(["scenario", "faults/power", "--hold", "--assets"])
        .arg(assets)
        .arg("--logs")
        .arg(logs.join("held"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("the lab has no output")?).read_line(&mut line)?;
    let own = i32::try_from(child.id())?;
    let left = descendants(own)?;
    process::kill(&mut child);
    ensure!(line.trim() == super::HOLDING, "the lab did not start");
    // The scenario, the first process of its namespaces, the lab itself, QEMU.
    ensure!(
        left.len() >= 4,
        "the lab consisted of {} processes only",
        left.len()
    );
    let gone = process::poll(SOON, Duration::from_millis(20), || {
        let now = processes()?;
        let alive = left
            .iter()
            .any(|(pid, start)| now.get(pid).is_some_and(|(_, now)| now == start));
        Ok((!alive).then_some(()))
    })?;
    gone.with_context(|| {
        format!(
            "of the processes {left:?} some are left after {} s",
            SOON.as_secs()
        )
    })
}

/// All processes that descend from `root`.
fn descendants(root: i32) -> Result<Vec<Process>> {
    let all = processes()?;
    let descends = |pid: i32| {
        let mut at = pid;
        // The depth is bounded: processes come and go while the list is made.
        for _ in 0..64 {
            match all.get(&at) {
                Some((parent, _)) if *parent == root => return true,
                Some((parent, _)) => at = *parent,
                None => return false,
            }
        }
        false
    };
    Ok(all
        .iter()
        .filter(|(pid, _)| descends(**pid))
        .map(|(pid, (_, start))| (*pid, *start))
        .collect())
}

/// The parent and start time of every process that has not ended.
fn processes() -> Result<HashMap<i32, (i32, u64)>> {
    let mut all = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // One that ends at this moment has no status any more.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        if let Some(process) = parse_stat(&stat) {
            all.insert(pid, process);
        }
    }
    Ok(all)
}

/// Parent and start time from `/proc/PID/stat` (proc(5)), unless the process has ended. Its name, in parentheses, may
/// hold anything.
fn parse_stat(stat: &str) -> Option<(i32, u64)> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let state = *fields.first()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::parse_stat;

    #[test]
    fn parent_and_start_are_found_behind_any_name() {
        let rest = "1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1 1";
        assert_eq!(
            parse_stat(&format!("12 (a ) b) S 7 {rest}")),
            Some((7, 777))
        );
        assert_eq!(parse_stat(&format!("12 (gone) Z 7 {rest}")), None);
        assert_eq!(parse_stat("12 (cut"), None);
    }
}
