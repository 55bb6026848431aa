"""A small Hub on 127.0.0.1 for the real client: the models of one user, on branch main, in memory."""

import base64
import hashlib
import json
import os
import threading
from collections import namedtuple
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import unquote

Repository = namedtuple("Repository", "private commits")
Commit = namedtuple("Commit", "sha files")


class Refused(Exception): ...  # status, message and, where the Hub has one, error code


def listed(path, data):
    """A file as the Hub lists it in a tree and as a sibling of a model; LFS if its first 512 bytes are binary."""
    is_lfs, blob, size = b"\0" in data[:512], b"blob %d\0" % len(data) + data, len(data)
    oid = hashlib.sha256(data).hexdigest() if is_lfs else hashlib.sha1(blob).hexdigest()
    lfs = {"oid": oid, "sha256": oid, "size": size, "pointerSize": 134} if is_lfs else None
    return {"type": "file", "path": path, "rfilename": path, "size": size, "oid": oid, "blobId": oid, "lfs": lfs}


class Handler(BaseHTTPRequestHandler):
    def handle_request(self):
        self.status, self.extra, self.body = 200, {}, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"{self.command} {self.path}")
        try:
            content = self.answer(*self.path.partition("?")[::2])
        except Refused as refused:
            self.status, message, *code = refused.args
            self.extra |= {"X-Error-Message": message} | ({"X-Error-Code": code[0]} if code else {})
            content = {"error": message}
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(self.status)
        for name, value in {**self.extra, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def log_message(self, *_): ...

    def answer(self, url, query):
        signed, needed = self.headers.get("Authorization"), url in ("/api/whoami-v2", "/api/repos/create")
        if signed != f"Bearer {self.server.token}" and (signed or needed):
            raise Refused(401, "Invalid credentials in Authorization header")
        match [self.command, *map(unquote, url.split("/")[1:])]:
            case ["GET", "api", "agent-harnesses"]:
                return {"standardEnvVars": [], "harnesses": {}}
            case ["POST", "api", "validate-yaml"]:
                missing = not json.loads(self.body)["content"].startswith("---\n")
                return {"warnings": [{"message": "empty or missing yaml metadata in repo card"}] * missing}
            case ["GET", "api", "whoami-v2"]:
                return {"type": "user", "name": "someone", "orgs": []}
            case ["POST", "api", "repos", "create"]:
                return self.create(**json.loads(self.body))
            case ["GET", "api", "models", user, name, *at] if not at or (at[0] == "revision" and len(at) == 2):
                commit, private = self.find(user, name, *at[1:]), self.server.repos[f"{user}/{name}"].private
                siblings = [listed(*f) if "blobs" in query else {"rfilename": f[0]} for f in commit.files.items()]
                return {"id": f"{user}/{name}", "sha": commit.sha, "private": private, "siblings": siblings}
            case ["GET", "api", "models", user, name, "tree", revision, *folder]:
                return self.tree(self.find(user, name, revision).files, "/".join(folder), "recursive=true" in query)
            case ["GET" | "HEAD", user, name, "resolve", revision, *path]:
                return self.resolve(self.find(user, name, revision), "/".join(path))
            case ["POST", "api", "models", user, name, "preupload", "main"]:
                files = self.find(user, name).files
                return {"files": [self.preupload(files, **file) for file in json.loads(self.body)["files"]]}
            case ["POST", user, name, "info", "lfs", "objects", "batch"]:
                self.find(user, name.removesuffix(".git"))
                return {"objects": [self.lfs_object(**file) for file in json.loads(self.body)["objects"]]}
            case ["PUT", "lfs", oid] if oid == hashlib.sha256(self.body).hexdigest():
                return self.server.lfs.update({oid: self.body})
            case ["POST", "api", "models", user, name, "commit", "main"] if "create_pr" not in query:
                return self.server.commit(f"{user}/{name}", self.changed(self.find(user, name).files))
            case ["GET", "api", "models", _] | ["GET", "api", "models", _, "revision", _] | [_, _, "resolve", *_]:
                raise Refused(404, "Repository not found", "RepoNotFound")
        self.server.unknown.append(f"{self.command} {self.path}")
        raise Refused(404, "Sorry, we can't find the page you are looking for.")

    def find(self, user, name, revision="main"):
        found, signed = self.server.repos.get(f"{user}/{name}"), "Authorization" in self.headers
        if not found or (not signed and (found.private or self.command == "POST")):
            raise Refused(404 if signed else 401, "Repository not found", "RepoNotFound")
        commits = {"main": found.commits[-1]} | {commit.sha: commit for commit in found.commits}
        if revision not in commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commits[revision]

    def create(self, name, organization=None, visibility="public", **_):
        repo = f"{organization or 'someone'}/{name}"
        self.status = 409 if repo in self.server.repos else 200
        if self.status == 200:
            self.server.repos[repo] = Repository(visibility == "private", [])
            self.server.commit(repo, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return {"url": f"{self.server.url}/{repo}"}

    def tree(self, files, folder, deep):
        every = {parent for path in map(PurePosixPath, files) for parent in (path, *path.parents)}
        paths = [str(path) for path in sorted(every) if PurePosixPath(folder) in path.parents[: None if deep else 1]]
        if folder and not paths:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        return [listed(p, files[p]) if p in files else {"type": "directory", "path": p, "oid": "0" * 40} for p in paths]

    def resolve(self, commit, path):
        self.extra["X-Repo-Commit"] = commit.sha
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data = commit.files[path]
        self.extra["ETag"] = f'"{listed(path, data)["oid"]}"'
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = data[int(first) : int(last or len(data)) + 1]
        if "Range" in self.headers:
            self.status, self.extra["Content-Range"] = 206, f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
        return part

    def preupload(self, files, path, sample, **_):
        mode = "lfs" if listed(path, base64.b64decode(sample))["lfs"] else "regular"
        oid = listed(path, files[path])["oid"] if path in files else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def lfs_object(self, oid, size):
        upload = {"actions": {"upload": {"href": f"{self.server.url}/lfs/{oid}"}}}
        return {"oid": oid, "size": size} | ({} if oid in self.server.lfs else upload)

    def changed(self, files):
        for key, value in (json.loads(line).values() for line in self.body.splitlines()):
            if key in ("deletedFile", "deletedFolder"):
                files = {p: files[p] for p in files if not f"{p}/".startswith(value["path"].rstrip("/") + "/")}
            elif key in ("file", "lfsFile"):
                data = base64.b64decode(value["content"]) if key == "file" else self.server.lfs[value["oid"]]
                files = {**files, value["path"]: data}
        return files


class Hub(ThreadingHTTPServer):
    """`repos` is for tests to inspect, `requests` logs every request, `unknown` those that are not implemented."""

    def __init__(self, token):
        super().__init__(("127.0.0.1", 0), Handler)
        self.token, self.url = token, f"http://127.0.0.1:{self.server_port}"
        self.repos, self.lfs, self.requests, self.unknown = {}, {}, [], []

    def environment(self, home):
        """Environment variables of a process that uses this Hub instead of the real one, with its cache in `home`."""
        kept = {key: os.environ[key] for key in os.environ if not key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
        ours = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": f"{home}/huggingface"}
        switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return kept | ours | switches | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def commit(self, repo, files):
        commits = self.repos[repo].commits
        sha = hashlib.sha1(repr((commits[-1:], sorted(files.items()))).encode()).hexdigest()
        commits.append(Commit(sha, files))
        return {"commitOid": sha, "commitUrl": f"{self.url}/{repo}/commit/{sha}"}


@contextmanager
def hub_server(token="hf_test"):
    """Run a Hub whose only user, `someone`, has this token."""
    with Hub(token) as hub, ExitStack() as stack:
        threading.Thread(target=hub.serve_forever, args=[0.05]).start()
        stack.callback(hub.shutdown)
        yield hub
