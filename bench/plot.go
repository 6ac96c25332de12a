package main

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// colours are distinct for readers who cannot tell red from green.
var colours = []color.Color{
	color.RGBA{0x00, 0x72, 0xb2, 0xff}, color.RGBA{0xe6, 0x9f, 0x00, 0xff}, color.RGBA{0x00, 0x9e, 0x73, 0xff},
}

// series is one line of a panel.
type series struct {
	name string
	ys   []float64
}

// plotCurve draws rate, latency and memory, one above the other.
func plotCurve(folder string, c *curve) error {
	var rates []series
	for r, name := range c.rates {
		rates = append(rates, c.series(name, func(p point) float64 { return p.rates[r] }))
	}
	panels := []*plot.Plot{
		c.panel("tasks/s", rates),
		c.panel("latency, ms", []series{
			c.series("p50", func(p point) float64 { return p.p50 }), c.series("p99", func(p point) float64 { return p.p99 }),
		}),
		c.panel("memory, MiB", []series{
			c.series("client", func(p point) float64 { return p.client }), c.series("RabbitMQ", func(p point) float64 { return p.broker }),
		}),
	}
	panels[0].Title.Text = c.title
	panels[len(panels)-1].X.Label.Text = c.axis
	return save(folder, c.name, 6*vg.Inch, 7*vg.Inch, panels)
}

func (c *curve) series(name string, figure func(point) float64) series {
	s := series{name: name}
	for i := range c.xs {
		s.ys = append(s.ys, c.median(i, figure))
	}
	return s
}

// panel draws lines over the logarithm of what grows. The y axis is logarithmic too, because figures grow by factors.
func (c *curve) panel(label string, lines []series) *plot.Plot {
	p := newPlot()
	p.Y.Label.Text = label
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.TickerFunc(decades)
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, plot.TickerFunc(decades)
	for i, s := range lines {
		var xys plotter.XYs
		for j, y := range s.ys {
			if y > 0 { // false for none
				xys = append(xys, plotter.XY{X: float64(c.xs[j]), Y: y})
			}
		}
		if len(xys) == 0 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(xys)
		if err != nil {
			continue // only for infinite values
		}
		line.Color, line.Width = colours[i%len(colours)], vg.Points(1.5)
		dots.Color, dots.Shape, dots.Radius = line.Color, draw.CircleGlyph{}, vg.Points(2.5)
		p.Add(line, dots)
		p.Legend.Add(s.name, line, dots)
	}
	p.Y.Min = math.Pow(10, math.Floor(math.Log10(p.Y.Min)))
	p.Y.Max = math.Pow(10, math.Ceil(math.Log10(p.Y.Max)+0.4)) // leaves room for the legend
	return p
}

// decades puts a labelled tick at each power of ten, and small ones at 2 and 5.
func decades(lo, hi float64) []plot.Tick {
	var ticks []plot.Tick
	for power := math.Floor(math.Log10(lo)); power <= math.Ceil(math.Log10(hi)); power++ {
		for _, digit := range []float64{1, 2, 5} {
			v := digit * math.Pow(10, power)
			if v < lo*0.999 || v > hi*1.001 {
				continue
			}
			tick := plot.Tick{Value: v}
			if digit == 1 {
				tick.Label = thousands(v)
				if v < 1 {
					tick.Label = fmt.Sprint(v)
				}
			}
			ticks = append(ticks, tick)
		}
	}
	return ticks
}

// plotRatios draws a bar for each row: how fast it is compared with the program by hand.
func plotRatios(folder string, works []*work) error {
	p := newPlot()
	p.Title.Text = "Dispatcher compared with the program by hand (1 = as fast)"
	var names []string
	var values plotter.Values
	for i := len(works) - 1; i >= 0; i-- { // the first is at the top
		for j := len(works[i].rows) - 1; j > 0; j-- {
			if r := works[i].rows[j]; strings.HasPrefix(r.program, "Dispatcher") {
				name := works[i].name
				if _, method, found := strings.Cut(r.program, ", "); found {
					name += " (" + method + ")"
				}
				names = append(names, name)
				values = append(values, median(ratios(r.samples, works[i].rows[0].samples)))
			}
		}
	}
	bars, err := plotter.NewBarChart(values, vg.Points(12))
	if err != nil {
		return err
	}
	bars.Horizontal, bars.Color, bars.LineStyle.Width = true, colours[0], 0
	one, err := plotter.NewLine(plotter.XYs{{X: 1, Y: -0.5}, {X: 1, Y: float64(len(names)) - 0.5}})
	if err != nil {
		return err
	}
	one.Color, one.Width = colours[1], vg.Points(1.5)
	p.Add(bars, one)
	p.NominalY(names...)
	p.X.Min = 0
	p.X.Max = math.Max(p.X.Max, 1.1)
	return save(folder, "ratios", 7*vg.Inch, vg.Length(len(names))*vg.Points(20)+vg.Inch, []*plot.Plot{p})
}

func newPlot() *plot.Plot {
	p := plot.New()
	for _, style := range []*draw.TextStyle{
		&p.Title.TextStyle, &p.X.Label.TextStyle, &p.Y.Label.TextStyle, &p.X.Tick.Label, &p.Y.Tick.Label, &p.Legend.TextStyle,
	} {
		style.Font.Variant = "Sans"
	}
	p.BackgroundColor = color.White
	grid := plotter.NewGrid()
	grid.Vertical.Color, grid.Horizontal.Color = color.Gray{0xdd}, color.Gray{0xdd}
	p.Add(grid)
	p.Legend.Top = true
	p.Legend.TextStyle.Font.Size = vg.Points(10)
	return p
}

// save draws the panels one above the other into FOLDER/NAME.svg.
func save(folder, name string, width, height vg.Length, panels []*plot.Plot) error {
	canvas := vgsvg.New(width, height)
	rows := make([][]*plot.Plot, len(panels))
	for i, p := range panels {
		rows[i] = []*plot.Plot{p}
	}
	tiles := draw.Tiles{Rows: len(panels), Cols: 1, PadX: vg.Points(8), PadY: vg.Points(8), PadTop: vg.Points(8), PadBottom: vg.Points(8), PadLeft: vg.Points(8), PadRight: vg.Points(8)}
	for i, at := range plot.Align(rows, tiles, draw.New(canvas)) {
		panels[i].Draw(at[0])
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return err
	}
	// Few readers have this font. Browsers would take one with serifs instead.
	text := strings.ReplaceAll(svg.String(), "font-family:Liberation Sans;", "font-family:Liberation Sans,Arial,Helvetica,sans-serif;")
	return os.WriteFile(filepath.Join(folder, name+".svg"), []byte(text), 0o644)
}
