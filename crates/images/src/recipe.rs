//! Guest recipes: what goes into a guest's images, as `guests/NAME/recipe.toml` says it (guests/README.md explains the
//! keys to people).

mod error;
mod file;
mod source;

pub use error::RecipeError;

use std::fs;
use std::path::Path;

use file::RecipeFile;
use source::{ServiceSource, Source};

/// A recipe with its bases merged in and its own files read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipe {
    /// The same as its directory's.
    pub name: String,
    /// One line for people.
    pub summary: String,
    /// Memory that the guest wants, in MiB.
    pub memory_mib: u32,
    /// The kernel's command line, without the network.
    pub command_line: String,
    pub(crate) packages: Vec<String>,
    pub(crate) modules: Vec<String>,
    pub(crate) keep: Vec<String>,
    pub(crate) programs: Vec<String>,
    pub(crate) files: Vec<OwnFile>,
    pub(crate) links: Vec<(String, String)>,
    pub(crate) certificates: Vec<Certificate>,
    pub(crate) wheels: Vec<Wheel>,
    pub(crate) services: Vec<Service>,
    pub(crate) disk_mib: u32,
    pub(crate) disk_modules: Vec<String>,
    pub(crate) disk_init: Vec<u8>,
    pub(crate) whole_packages: bool,
}

/// A file of the recipe's own directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnFile {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) content: Vec<u8>,
}

/// A self-signed certificate to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// Where in the guest it lies.
    pub(crate) path: String,
    /// Where in the guest its private key lies.
    pub(crate) key_path: String,
    /// The first is the subject.
    pub(crate) names: Vec<String>,
    pub(crate) addresses: Vec<std::net::IpAddr>,
}

/// A Python package that Debian does not have, from the Python package index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wheel {
    /// Its name there.
    pub(crate) package: String,
    pub(crate) version: String,
    /// The digests of its files, in hexadecimal: one a release of Python.
    pub(crate) sha256: Vec<String>,
}

/// What the guest runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) start: String,
    pub(crate) ready: Option<String>,
    pub(crate) stop: Option<String>,
    pub(crate) on_request: bool,
}

impl Recipe {
    /// Reads `guests/name/recipe.toml`, its bases and all files that they name.
    ///
    /// # Errors
    /// Fails with file, line and key where something is wrong.
    pub fn read(guests: &Path, name: &str) -> Result<Self, RecipeError> {
        let mut recipe = Self {
            memory_mib: 512,
            disk_mib: 256,
            ..Self::default()
        };
        recipe.add(guests, name, &mut Vec::new(), &mut Vec::new())?;
        Ok(recipe)
    }

    /// Adds the recipe `name`, after its bases. A base of several recipes is added once. `above` are the recipes that build on
    /// this one, `done` those that have been added.
    fn add(
        &mut self,
        guests: &Path,
        name: &str,
        above: &mut Vec<String>,
        done: &mut Vec<String>,
    ) -> Result<(), RecipeError> {
        let (source, file) = RecipeFile::read(guests, name)?;
        above.push(name.to_owned());
        if let Some(bases) = &source.base {
            for base in bases.get_ref().names() {
                file.check_name_in(bases, base, "base")?;
                if above.contains(base) {
                    let circle = format!("goes round in a circle: {}", above.join(" → "));
                    return Err(file.wrong(bases, "base", circle));
                }
                if !done.contains(base) {
                    self.add(guests, base, above, done)?;
                }
            }
        }
        above.pop();
        done.push(name.to_owned());
        self.extend(source, &file)
    }

    /// Adds `source` to what came from its base: lists grow, single values are replaced.
    fn extend(&mut self, source: Source, file: &RecipeFile) -> Result<(), RecipeError> {
        self.name = source.name.into_inner();
        self.summary = source.summary;
        if let Some(memory) = &source.memory {
            self.memory_mib = file.mebibytes(memory, "memory")?;
        }
        if let Some(command_line) = source.command_line {
            self.command_line = command_line;
        }
        for package in source.packages {
            file.check_name(&package, "packages")?;
            self.packages.push(package.into_inner());
        }
        self.modules.extend(source.modules);
        for path in source.keep {
            self.keep.push(file.absolute(&path, "keep")?);
        }
        for program in source.programs {
            let directory = file.absolute(&program.directory, "program.directory")?;
            self.programs.extend(
                program
                    .names
                    .iter()
                    .map(|name| format!("{directory}/{name}")),
            );
        }
        for own in source.files {
            let mode = own
                .mode
                .as_ref()
                .map_or(Ok(0o644), |m| file.mode(m, "file.mode"))?;
            let path = file.absolute(&own.path, "file.path")?;
            self.files.push(OwnFile {
                path,
                mode,
                content: file.own(&own.source, "file.source")?,
            });
        }
        for link in source.links {
            self.links
                .push((file.absolute(&link.path, "link.path")?, link.target));
        }
        for certificate in source.certificates {
            if certificate.names.get_ref().is_empty() {
                return Err(file.wrong(
                    &certificate.names,
                    "certificate.names",
                    "needs one name at least",
                ));
            }
            self.certificates.push(Certificate {
                path: file.absolute(&certificate.certificate, "certificate.certificate")?,
                key_path: file.absolute(&certificate.key, "certificate.key")?,
                names: certificate.names.into_inner(),
                addresses: certificate.addresses,
            });
        }
        for wheel in source.wheels {
            file.check_name(&wheel.package, "wheel.package")?;
            file.check_name(&wheel.version, "wheel.version")?;
            let digests = wheel.sha256.get_ref().iter();
            if digests.len() == 0 {
                return Err(file.wrong(&wheel.sha256, "wheel.sha256", "needs one digest at least"));
            }
            self.wheels.push(Wheel {
                sha256: digests
                    .map(|digest| file.sha256(digest, "wheel.sha256"))
                    .collect::<Result<_, _>>()?,
                package: wheel.package.into_inner(),
                version: wheel.version.into_inner(),
            });
        }
        for service in source.services {
            file.check_name(&service.name, "service.name")?;
            let ServiceSource {
                name,
                start,
                ready,
                stop,
                on_request,
            } = service;
            self.services.push(Service {
                name: name.into_inner(),
                start,
                ready,
                stop,
                on_request,
            });
        }
        if let Some(disk) = source.disk {
            if let Some(size) = &disk.size {
                self.disk_mib = file.mebibytes(size, "disk.size")?;
            }
            if let Some(init) = &disk.init {
                self.disk_init = file.own(init, "disk.init")?;
            }
            self.disk_modules.extend(disk.modules);
            self.whole_packages |= disk.whole_packages;
        }
        Ok(())
    }
}

/// The names of the recipes in `guests`, sorted.
pub(crate) fn names_in(guests: &Path) -> Vec<String> {
    let entries = fs::read_dir(guests)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let recipes = entries.filter(|e| e.path().join("recipe.toml").is_file());
    let mut names: Vec<String> = recipes
        .filter_map(|e| e.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
