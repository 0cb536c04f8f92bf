// Search on pages that are opened as files: browsers start no worker there, so the search runs in a hidden frame.
// It has the part of Worker's interface that the theme uses, and does nothing on pages that a server serves.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.append(frame)
      this.waiting = []
      const inner = frame.contentWindow
      inner.document.open()
      inner.document.write(`<!doctype html><script>
        function importScripts(...urls) {
          return urls.reduce((before, url) => before.then(() => new Promise((done, failed) => {
            const script = document.createElement("script")
            script.src = url
            script.onload = done
            script.onerror = failed
            document.head.append(script)
          })), Promise.resolve())
        }
      <\/script>`)
      inner.document.close()
      // The script talks to `self`; what it posts comes out here, what is posted here goes in there.
      inner.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.inner = inner
      const script = inner.document.createElement("script")
      script.src = url
      script.onload = () => {
        const waiting = this.waiting
        this.waiting = null
        waiting.forEach(data => this.postMessage(data))
      }
      inner.document.head.append(script)
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.inner.dispatchEvent(new MessageEvent("message", { data }))
    }

    terminate() {}
  }
}
