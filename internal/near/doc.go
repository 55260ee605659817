// Package near is for fuzz targets. A fuzzer that knows no grammar makes much that is refused at
// its first bytes, and seldom the next one to what is accepted, which is where a parser errs: one
// byte more, less, or another. A target that takes a place and a byte besides its input tries
// those too.
package near
