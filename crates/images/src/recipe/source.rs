//! A recipe as its file has it: the keys, and which of them must be there.

use serde::Deserialize;
use toml::Spanned;

/// The file as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Source {
    pub(super) name: Spanned<String>,
    pub(super) base: Option<Spanned<String>>,
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
    #[serde(default, rename = "service")]
    pub(super) services: Vec<ServiceSource>,
    pub(super) disk: Option<DiskSource>,
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
