//! A recipe as its file has it: the keys, and which of them must be there.

use serde::Deserialize;
use toml::Spanned;

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub(super) name: Spanned<String>,
    pub(super) base: Option<Spanned<Bases>>,
    pub(super) summary: String,
    pub(super) memory: Option<Spanned<String>>,
    pub(super) command_line: Option<String>,
    #[serde(default)]
    pub(super) packages: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) modules: Vec<String>,
    #[serde(default)]
    pub(super) keep: Vec<Spanned<String>>,
    #[serde(default, rename = "program")]
    pub(super) programs: Vec<ProgramSource>,
    #[serde(default, rename = "file")]
    pub(super) files: Vec<FileSource>,
    #[serde(default, rename = "link")]
    pub(super) links: Vec<LinkSource>,
    #[serde(default, rename = "certificate")]
    pub(super) certificates: Vec<CertificateSource>,
    #[serde(default, rename = "wheel")]
    pub(super) wheels: Vec<WheelSource>,
    #[serde(default, rename = "service")]
    pub(super) services: Vec<ServiceSource>,
    pub(super) disk: Option<DiskSource>,
}

/// One recipe to build on, or several.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected the name of a recipe, or a list of names"
)]
pub(super) enum Bases {
    One(String),
    Several(Vec<String>),
}

impl Bases {
    pub(super) fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProgramSource {
    pub(super) directory: Spanned<String>,
    pub(super) names: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileSource {
    pub(super) path: Spanned<String>,
    pub(super) source: Spanned<String>,
    pub(super) mode: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkSource {
    pub(super) path: Spanned<String>,
    pub(super) target: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateSource {
    pub(super) certificate: Spanned<String>,
    pub(super) key: Spanned<String>,
    pub(super) names: Spanned<Vec<String>>,
    #[serde(default)]
    pub(super) addresses: Vec<std::net::IpAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WheelSource {
    pub(super) package: Spanned<String>,
    pub(super) version: Spanned<String>,
    pub(super) sha256: Spanned<Vec<Spanned<String>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceSource {
    pub(super) name: Spanned<String>,
    pub(super) start: String,
    pub(super) ready: Option<String>,
    pub(super) stop: Option<String>,
    #[serde(default)]
    pub(super) on_request: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskSource {
    pub(super) size: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) modules: Vec<String>,
    pub(super) init: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) whole_packages: bool,
}
