//! What tshark says of the streams in a capture (`tshark -q -z rtp,streams`): another's eye on the same packets, for tests.

use std::process::{Command, Output};

/// One line of its table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// The stream's number in its packets' headers.
    pub ssrc: u32,
    /// Packets, each as often as it came.
    pub packets: u32,
    /// Sequence numbers between the first and the last packet, less the packets: one that came twice makes up for one that was
    /// lost.
    pub lost: i64,
    /// The longest time between two packets, in ms.
    pub longest_gap_ms: f64,
    /// RFC 3550's jitter: the mean of its values, in ms.
    pub jitter_ms: f64,
    /// The largest of them.
    pub jitter_max_ms: f64,
}

/// The command that prints the table of a capture whose media goes to or comes from one of `ports` (`"40000"`,
/// `"30000-50000"`).
pub fn command(capture: &std::path::Path, ports: &str) -> Command {
    let mut command = Command::new("tshark");
    command
        .args(["-n", "-q", "-z", "rtp,streams", "-d"])
        .arg(format!("udp.port=={ports},rtp"))
        .arg("-r")
        .arg(capture)
        .env("LC_ALL", "C");
    command
}

/// Reads the table; an error says what of it is not understood.
///
/// # Errors
/// It is none, or another version's.
pub fn read(output: &Output) -> Result<Vec<Line>, String> {
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("tshark: {}", said.trim()));
    }
    let head = text.lines().find(|line| line.contains("SSRC"));
    let head: Vec<&str> = head.unwrap_or_default().split_whitespace().collect();
    let known = head.join(" ");
    if !known.contains("Pkts Lost Min Delta(ms) Mean Delta(ms) Max Delta(ms) Min Jitter(ms) Mean Jitter(ms) Max Jitter(ms)") {
        return Err(format!("tshark printed another table: {text}"));
    }
    // Below the head are streams, and then a line of signs.
    text.lines()
        .skip_while(|line| !line.contains("SSRC"))
        .skip(1)
        .take_while(|line| !line.starts_with('='))
        .map(|line| parse(line).ok_or_else(|| format!("tshark printed {line:?}")))
        .collect()
}

/// Start and end time, source address and port, destination address and port, SSRC, payload, packets, lost (its share in
/// parentheses), then the least, the mean and the largest time between packets and jitter.
fn parse(line: &str) -> Option<Line> {
    let words: Vec<&str> = line
        .split_whitespace()
        .filter(|word| !word.starts_with('('))
        .collect();
    let number = |at: usize| -> Option<f64> { words.get(at)?.parse().ok() };
    Some(Line {
        ssrc: u32::from_str_radix(words.get(6)?.strip_prefix("0x")?, 16).ok()?,
        packets: words.get(8)?.parse().ok()?,
        lost: words.get(9)?.parse().ok()?,
        longest_gap_ms: number(12)?,
        jitter_ms: number(14)?,
        jitter_max_ms: number(15)?,
    })
}

#[cfg(test)]
mod tests {
    use super::{Line, parse};

    #[test]
    fn a_line_is_read() {
        let line = "     0.000000      9.980000     192.0.2.1 20000    192.0.2.2 40000 0xA0001000 g711U   500     2 (0.4%)           19.100          20.000          20.900           0.000           0.630           0.885 X";
        let wanted = Line {
            ssrc: 0xa000_1000,
            packets: 500,
            lost: 2,
            longest_gap_ms: 20.9,
            jitter_ms: 0.63,
            jitter_max_ms: 0.885,
        };
        assert_eq!(parse(line), Some(wanted));
        assert_eq!(parse("no line of it"), None);
    }
}
