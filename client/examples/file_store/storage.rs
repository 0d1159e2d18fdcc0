//! A storage: keeps contents on its disk, each with the greatest token that was seen for it.
//!
//! ```text
//! PUT name token length, and the contents    OK, or STALE newest
//! DELETE name token                          OK, or STALE newest
//! GET name                                   DATA token length, and the contents, or NONE
//! ```

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use conclave_client::Client;
use conclave_client::recipes::discovery::{Discovery, Instance};
use conclave_client::recipes::{self, Fence, Token};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::files::Files;
use crate::{SESSION_TIMEOUT, connect};

/// The longest contents.
const LONGEST: usize = 64 << 20;

/// What is kept of a file.
pub(crate) struct Stored {
    pub(crate) token: Token,
    pub(crate) contents: Vec<u8>,
}

// ---- The storage itself.

/// The contents below a directory: a file for each, of which the first line is the greatest token
/// that was seen, with a minus in front if the contents were deleted. The token outlives what it
/// protects: a fence that forgets is none.
struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    fn open(dir: PathBuf) -> Result<Shelf> {
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        Ok(Shelf { dir })
    }

    /// Names come from the network, and must not lead elsewhere.
    fn path(&self, name: &str) -> Result<PathBuf> {
        let is_plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
        ensure!(is_plain, "{name:?} cannot be a name");
        Ok(self.dir.join(name))
    }

    /// The fence of a file, and its contents unless they were deleted.
    fn load(&self, name: &str) -> Result<(Fence, Option<Vec<u8>>)> {
        let path = self.path(name)?;
        let data = match fs::read(&path) {
            Ok(data) => data,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok((Fence::default(), None));
            }
            Err(error) => return Err(error.into()),
        };
        let end = data.iter().position(|&byte| byte == b'\n');
        let end = end.with_context(|| format!("{} has no token", path.display()))?;
        let line = std::str::from_utf8(&data[..end])?;
        let (token, is_there) = line.strip_prefix('-').map_or((line, true), |token| (token, false));
        let contents = is_there.then(|| data[end + 1..].to_vec());
        Ok((Fence::at(token.parse()?), contents))
    }

    /// Writes contents, or that there are none any more, with the token in the same write: on disk
    /// before anybody is told of it.
    fn store(&self, name: &str, token: Token, contents: Option<&[u8]>) -> Result<String> {
        let (mut fence, _) = self.load(name)?;
        if let Err(stale) = fence.admit(token) {
            println!("{name}: refused: {stale}");
            return Ok(format!("STALE {}", stale.newest));
        }
        let mut file = tempfile(&self.dir)?;
        let deleted = if contents.is_some() { "" } else { "-" };
        file.0.write_all(format!("{deleted}{token}\n").as_bytes())?;
        file.0.write_all(contents.unwrap_or_default())?;
        file.0.sync_all()?;
        fs::rename(&file.1, self.path(name)?)?;
        fs::File::open(&self.dir)?.sync_all()?;
        Ok("OK".into())
    }

    /// The names of all contents that are there.
    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && self.load(&name)?.1.is_some() {
                names.push(name);
            }
        }
        Ok(names)
    }
}

/// A file to be renamed. One at a time: everything is done by one thread.
fn tempfile(dir: &Path) -> Result<(fs::File, PathBuf)> {
    let path = dir.join(".new");
    Ok((fs::File::create(&path)?, path))
}

/// Serves what is in a directory, and is found while it does.
pub(crate) async fn serve(instance: Instance, dir: PathBuf, listener: TcpListener) -> Result<()> {
    let shelf = Rc::new(Shelf::open(dir)?);
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            tokio::select! {
                ended = stay_registered(&instance, &shelf) => ended,
                ended = accept(&listener, &shelf) => ended,
            }
        })
        .await
}

async fn stay_registered(instance: &Instance, shelf: &Shelf) -> Result<()> {
    loop {
        let client = connect().await?;
        let ended = tokio::select! {
            ended = register(&client, instance, shelf) => ended,
            stopped = tokio::signal::ctrl_c() => {
                stopped?;
                client.close().await?;
                return Ok(());
            }
        };
        let error = ended.err().context("it goes on until it fails")?;
        match error.downcast::<recipes::Error>() {
            Ok(error) if error.is_final() => println!("{}: {error}; once more", instance.id),
            Ok(error) => return Err(error.into()),
            Err(error) => return Err(error),
        }
    }
}

async fn register(client: &Client, instance: &Instance, shelf: &Shelf) -> Result<()> {
    let discovery = Discovery::new(client, "/files/storages")?;
    let registering = discovery.registering("storage", instance)?.wait(SESSION_TIMEOUT * 2);
    let registered = registering.create().await?;
    println!("{} has {} files, at {}", instance.id, shelf.names()?.len(), instance.address);
    sweep(client, instance, shelf).await?;
    Err(registered.ended().await.into())
}

/// Deletes the contents of files that are no more: whoever deleted one died in between.
async fn sweep(client: &Client, instance: &Instance, shelf: &Shelf) -> Result<()> {
    let files = Files::new(client).await?;
    for name in shelf.names()? {
        let is_here = async || {
            let file = files.file(&name).await?;
            anyhow::Ok(file.is_some_and(|file| file.storage == instance.id))
        };
        if is_here().await? {
            continue;
        }
        let hold = files.lock(&name)?.write().await?;
        if !is_here().await? {
            println!("{name} is no more: {}", shelf.store(&name, hold.token(), None)?);
        }
        hold.release().await?;
    }
    Ok(())
}

async fn accept(listener: &TcpListener, shelf: &Rc<Shelf>) -> Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        let shelf = Rc::clone(shelf);
        tokio::task::spawn_local(async move {
            if let Err(error) = converse(socket, &shelf).await {
                println!("a request failed: {error:#}");
            }
        });
    }
}

async fn converse(socket: TcpStream, shelf: &Shelf) -> Result<()> {
    let mut socket = BufReader::new(socket);
    let mut line = String::new();
    while socket.read_line(&mut line).await? > 0 {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (answer, contents) = match words[..] {
            ["PUT", name, token, length] => {
                let length: usize = length.parse()?;
                ensure!(length <= LONGEST, "{name} is longer than {LONGEST} bytes");
                let mut contents = vec![0; length];
                socket.read_exact(&mut contents).await?;
                (shelf.store(name, token.parse()?, Some(&contents))?, Vec::new())
            }
            ["DELETE", name, token] => (shelf.store(name, token.parse()?, None)?, Vec::new()),
            ["GET", name] => match shelf.load(name)? {
                (fence, Some(contents)) => {
                    let token = fence.newest().map_or(0, Token::get);
                    (format!("DATA {token} {}", contents.len()), contents)
                }
                (_, None) => ("NONE".into(), Vec::new()),
            },
            _ => bail!("{line:?} is no request"),
        };
        socket.write_all(format!("{answer}\n").as_bytes()).await?;
        socket.write_all(&contents).await?;
        line.clear();
    }
    Ok(())
}

// ---- Its other end.

/// A storage as its users see it.
pub(crate) struct Storage {
    pub(crate) address: String,
}

impl Storage {
    pub(crate) async fn put(&self, name: &str, token: Token, contents: &[u8]) -> Result<()> {
        ensure!(contents.len() <= LONGEST, "{name} would be longer than {LONGEST} bytes");
        let request = format!("PUT {name} {token} {}\n", contents.len());
        self.change(name, token, &[request.as_bytes(), contents]).await
    }

    pub(crate) async fn delete(&self, name: &str, token: Token) -> Result<()> {
        self.change(name, token, &[format!("DELETE {name} {token}\n").as_bytes()]).await
    }

    pub(crate) async fn get(&self, name: &str) -> Result<Option<Stored>> {
        let (answer, mut socket) = self.ask(&[format!("GET {name}\n").as_bytes()]).await?;
        match answer.split(' ').collect::<Vec<_>>()[..] {
            ["NONE"] => Ok(None),
            ["DATA", token, length] => {
                let length: usize = length.parse()?;
                ensure!(length <= LONGEST, "{} sends nonsense", self.address);
                let mut contents = vec![0; length];
                socket.read_exact(&mut contents).await?;
                Ok(Some(Stored { token: token.parse()?, contents }))
            }
            _ => bail!("{} answers {answer:?}", self.address),
        }
    }

    async fn change(&self, name: &str, token: Token, request: &[&[u8]]) -> Result<()> {
        let (answer, _) = self.ask(request).await?;
        match answer.split(' ').collect::<Vec<_>>()[..] {
            ["OK"] => Ok(()),
            ["STALE", newest] => bail!(
                "the storage refuses token {token} for {name}: {newest} was seen since, so another \
                 one holds the lock; nothing is changed"
            ),
            _ => bail!("{} answers {answer:?}; it may be done or not", self.address),
        }
    }

    /// Sends a request, and reads the first line of its answer.
    async fn ask(&self, request: &[&[u8]]) -> Result<(String, BufReader<TcpStream>)> {
        let address = &self.address;
        let socket = TcpStream::connect(address).await;
        let mut socket = BufReader::new(socket.with_context(|| format!("asking {address}"))?);
        for part in request {
            socket.write_all(part).await?;
        }
        let mut answer = String::new();
        socket.read_line(&mut answer).await?;
        Ok((answer.trim_end().to_owned(), socket))
    }
}
