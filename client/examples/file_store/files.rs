//! What users of the store do: names and locks in Conclave, contents at the storages.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use conclave_client::recipes::discovery::{Discovery, Provider, Strategy};
use conclave_client::recipes::{Hold, ReadWriteLock, Token, place};
use conclave_client::{Client, ErrorCode, ZPath};
use serde::{Deserialize, Serialize};

use crate::storage::{Storage, Stored};

/// Where the nodes of the files are.
const META: &str = "/files/meta";
const LOCKS: &str = "/files/locks";
/// How long to wait for a storage that is being started again.
const PATIENCE: Duration = Duration::from_secs(10);

/// What Conclave knows of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct File {
    /// Where its contents are.
    pub(crate) storage: String,
    /// The length of what was written last and acknowledged.
    pub(crate) length: usize,
    /// The token under which that was, or under which the file was made if nothing was written.
    /// What its storage has of a lesser one is of a deleted file of the same name.
    pub(crate) token: u64,
}

/// The files, and the storages that have them.
pub(crate) struct Files {
    client: Client,
    storages: Provider,
}

impl Files {
    pub(crate) async fn new(client: &Client) -> Result<Files> {
        let discovery = Discovery::new(client, "/files/storages")?;
        let storages = discovery.provider("storage", Strategy::Random).await?;
        Ok(Files { client: client.clone(), storages })
    }

    /// The lock that whoever writes a file holds alone, and who reads it with other readers.
    pub(crate) fn lock(&self, name: &str) -> Result<ReadWriteLock> {
        Ok(ReadWriteLock::new(&self.client, place(LOCKS, name)?)?)
    }

    /// Makes a file. It is there, and empty, before its contents are read.
    pub(crate) async fn create<I>(&self, name: &str, contents: impl FnOnce() -> I) -> Result<()>
    where
        I: Future<Output = Result<Vec<u8>>>,
    {
        let storage = self.storages.wait(PATIENCE).await.context("no storage is there")?.id;
        let hold = self.lock(name)?.write().await?;
        ensure!(self.file(name).await?.is_none(), "{name} is there already");
        let file = File { storage, length: 0, token: hold.token().get() };
        for path in ["/files", META] {
            match self.client.create(path, "").await {
                Err(error) if error.code() != Some(ErrorCode::NodeExists) => {
                    return Err(error.into());
                }
                Ok(_) | Err(_) => {}
            }
        }
        // From here on it has a place, so that nothing is ever kept at a storage for no file.
        hold.guard(self.client.multi().create(meta(name)?, serde_json::to_vec(&file)?)).await?;
        let storage = self.storage(&file).await?;
        self.put(name, (file, &storage), &hold, contents().await?).await?;
        Ok(hold.release().await?)
    }

    /// Replaces what is in a file.
    pub(crate) async fn write<I>(&self, name: &str, contents: impl FnOnce() -> I) -> Result<()>
    where
        I: Future<Output = Result<Vec<u8>>>,
    {
        let hold = self.lock(name)?.write().await?;
        let file = self.existing(name).await?;
        let storage = self.storage(&file).await?;
        eprintln!("{name} is locked, with token {}", hold.token());
        self.put(name, (file, &storage), &hold, contents().await?).await?;
        Ok(hold.release().await?)
    }

    /// Adds a line to a file, to what is in it at that moment.
    pub(crate) async fn append(&self, name: &str, line: &str) -> Result<()> {
        let hold = self.lock(name)?.write().await?;
        let file = self.existing(name).await?;
        let storage = self.storage(&file).await?;
        let mut contents = self.contents(name, &file).await?;
        contents.extend_from_slice(line.as_bytes());
        contents.push(b'\n');
        self.put(name, (file, &storage), &hold, contents).await?;
        Ok(hold.release().await?)
    }

    /// What is in a file. No writer is in the middle of it.
    pub(crate) async fn read(&self, name: &str) -> Result<Vec<u8>> {
        let hold = self.lock(name)?.read().await?;
        let contents = self.contents(name, &self.existing(name).await?).await?;
        // Shared locks do no harm when they are lost: what was read was there.
        hold.release().await.ok();
        Ok(contents)
    }

    /// Deletes a file. What is left of it if this dies in between, its storage sweeps up.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        let hold = self.lock(name)?.write().await?;
        let file = self.existing(name).await?;
        let storage = self.storage(&file).await?;
        hold.guard(self.client.multi().delete(meta(name)?, None)).await?;
        storage.delete(name, hold.token()).await?;
        Ok(hold.release().await?)
    }

    pub(crate) async fn list(&self) -> Result<Vec<(String, File)>> {
        let mut files = Vec::new();
        let mut entries = self.client.list(META).with_data().linearizable().stream();
        while let Some(entry) = entries.next().await {
            match entry {
                Ok(entry) => {
                    let file = serde_json::from_slice(entry.data.as_deref().unwrap_or_default());
                    files.push((entry.name.clone(), file.with_context(|| entry.name)?));
                }
                Err(error) if error.code() == Some(ErrorCode::NoNode) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(files)
    }

    /// What Conclave knows of a file; `None` if there is none of that name.
    pub(crate) async fn file(&self, name: &str) -> Result<Option<File>> {
        match self.client.get(meta(name)?).linearizable().await {
            Ok(node) => Ok(Some(serde_json::from_slice(node.bytes())?)),
            Err(error) if error.code() == Some(ErrorCode::NoNode) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn existing(&self, name: &str) -> Result<File> {
        self.file(name).await?.with_context(|| format!("there is no file {name}"))
    }

    /// Writes the contents, and then that they are written.
    ///
    /// It does not ask whether the lock is still held: that could not be known by the time the
    /// contents arrive. The storage knows it by the token.
    async fn put(
        &self,
        name: &str,
        (file, storage): (File, &Storage),
        hold: &Hold,
        contents: Vec<u8>,
    ) -> Result<()> {
        let (length, token) = (contents.len(), hold.token());
        storage.put(name, token, &contents).await?;
        let file = File { length, token: token.get(), ..file };
        let multi = self.client.multi().set(meta(name)?, serde_json::to_vec(&file)?, None);
        hold.guard(multi).await.context("it may be written or not")?;
        Ok(())
    }

    async fn contents(&self, name: &str, file: &File) -> Result<Vec<u8>> {
        let acknowledged = Token::new(file.token);
        match self.storage(file).await?.get(name).await? {
            // A later token: somebody wrote it and died before it could say so here.
            Some(Stored { token, contents }) if token >= acknowledged => Ok(contents),
            Some(_) | None if file.length == 0 => Ok(Vec::new()),
            Some(_) | None => bail!("{} has lost what was written to {name}", file.storage),
        }
    }

    /// The storage that has a file, wherever it is now.
    async fn storage(&self, file: &File) -> Result<Storage> {
        let id = &file.storage;
        let find = async {
            loop {
                let mut changes = self.storages.cache().changes()?;
                let all = self.storages.instances()?;
                if let Some(storage) = all.into_iter().find(|storage| storage.id == *id) {
                    return Ok(Storage { address: storage.address });
                }
                changes.next().await.transpose()?;
            }
        };
        let found = tokio::time::timeout(PATIENCE, find).await;
        found.with_context(|| format!("the storage {id} is not there"))?
    }
}

fn meta(name: &str) -> Result<ZPath> {
    let is_word = !name.contains(char::is_whitespace) && !name.starts_with('.');
    ensure!(is_word, "{name:?} cannot be a name: it has a space in it, or begins with a dot");
    Ok(place(META, name)?)
}
