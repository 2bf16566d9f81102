//! `mode`, `unsafe` and `[[protection.flow]]`: which output may leave before its epoch is committed.

use super::{
    reader::{Section, Value},
    schema::{Reader, or},
};
use romulus_network::mode::{Media, Mode, Rule, default_rules};
use std::ops::{Range, RangeInclusive};
use toml::Spanned;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Net,
    Split,
    NoNet,
}

impl Reader<'_> {
    /// Reads what of `[protection]` says how output is treated.
    pub(super) fn mode(&self, section: &mut Section<'_, '_>) -> Option<Mode> {
        let name = or(section.take("mode"), Name::Net, |v| {
            section
                .parse("mode", v, parse_name)
                .map(Spanned::into_inner)
        });
        let tcp = or(section.take("unsafe"), None, |v| {
            let span = v.span();
            section.boolean("unsafe", v).map(|on| Some((on, span)))
        });
        let flows = section.sections("flow");
        let first = flows.first().map(Section::span);
        let rules = flows.into_iter().map(rule);
        // All are read, so that every problem is shown.
        let rules: Vec<Option<Rule>> = rules.collect();
        let rules: Option<Vec<Rule>> = rules.into_iter().collect();
        let (name, tcp, rules) = (name?, tcp?, rules?);
        if let Some((_, span)) = &tcp
            && name != Name::NoNet
        {
            return self.only_in(span.clone(), "unsafe", "no-net");
        }
        if let Some(span) = first
            && name != Name::Split
        {
            return self.only_in(span, "[[protection.flow]]", "split");
        }
        Some(match name {
            Name::Net => Mode::Net,
            Name::Split if rules.is_empty() => Mode::Split(default_rules()),
            Name::Split => Mode::Split(rules),
            Name::NoNet => Mode::NoNet {
                tcp: tcp.is_some_and(|(on, _)| on),
            },
        })
    }

    fn only_in<T>(&self, span: Range<usize>, what: &str, mode: &str) -> Option<T> {
        self.problems.at(
            span,
            format!("{what} means something in `mode = \"{mode}\"` only"),
        )
    }
}

fn rule(mut section: Section<'_, '_>) -> Option<Rule> {
    let pass = section.require("action", "\"pass\"").and_then(|v| {
        section.parse("action", v, |text| match text {
            "pass" => Ok(true),
            "hold" => Ok(false),
            _ => Err(format!("{text:?} is neither \"pass\" nor \"hold\"")),
        })
    });
    let media = or(section.take("protocol"), Media::Any, |v| {
        section
            .parse("protocol", v, parse_media)
            .map(Spanned::into_inner)
    });
    let ports = or(section.take("ports"), 0..=u16::MAX, |v| {
        section
            .parse("ports", v, parse_ports)
            .map(Spanned::into_inner)
    });
    let dscp = or(section.take("dscp"), None, |v: Value<'_>| {
        let class = section.integer("dscp", v, 0, 63)?;
        Some(u8::try_from(class).ok())
    });
    section.finish();
    Some(Rule {
        pass: pass?.into_inner(),
        media: media?,
        ports: ports?,
        dscp: dscp?,
    })
}

fn parse_name(text: &str) -> Result<Name, String> {
    match text {
        "net" => Ok(Name::Net),
        "split" => Ok(Name::Split),
        "no-net" => Ok(Name::NoNet),
        _ => Err(format!(
            "{text:?} is no mode; write \"net\" (all output is held), \"split\" (media is not) or \"no-net\" (only TCP is)"
        )),
    }
}

fn parse_media(text: &str) -> Result<Media, String> {
    match text {
        "rtp" => Ok(Media::Rtp),
        "rtcp" => Ok(Media::Rtcp),
        "any" => Ok(Media::Any),
        _ => Err(format!(
            "{text:?}: only \"rtp\", \"rtcp\" or \"any\" of the two can leave before their epoch is safe; everything else is always held"
        )),
    }
}

/// A port, or the first and the last of some.
fn parse_ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| {
        text.trim()
            .parse::<u16>()
            .map_err(|_| format!("{text:?} is no port (0 to 65535)"))
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last {
        return Err(format!("{text:?}: the first port is above the last"));
    }
    Ok(first..=last)
}
